"""A schedule compiled into integers: which example in which row of which optimizer step."""
