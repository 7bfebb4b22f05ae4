"""Analyses: what models represent and what data contains."""
