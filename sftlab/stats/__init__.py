"""Numbers in, numbers out: intervals, paired comparisons, fits, trade-offs, forgetting."""
