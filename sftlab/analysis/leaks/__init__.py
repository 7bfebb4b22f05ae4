"""Evaluation problems in training data."""
