"""From a checkpoint to scores."""
