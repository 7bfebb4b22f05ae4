"""Lines of results files, shared by writers and readers of scores and verdicts; without torch."""
