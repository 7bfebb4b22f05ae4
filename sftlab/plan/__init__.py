"""A schedule compiled into integers: which example in which row of which optimizer step.

In the order of the data: pool -> policy -> stage -> packing -> plan -> ledger -> table. Names, lengths and integers
only; nothing here imports torch.
"""
