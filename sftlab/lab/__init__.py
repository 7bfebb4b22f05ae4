"""The embedded testbed: generated abilities with exact checks."""
