"""Tags of what users ask for."""
