"""Evaluation: from a checkpoint to scores."""
