"""Looking inside: what models represent and what data contains."""
