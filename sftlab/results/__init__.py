"""Lines of results files: what writers and readers of scores and verdicts share; without torch."""
