"""From a batch to an update.

In the order of the data: attention -> backbone -> loss -> optim -> parallel -> module -> export.
"""
