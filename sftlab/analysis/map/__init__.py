"""Hidden states of prompts, measured and drawn."""
