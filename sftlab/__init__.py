"""sftlab: which data, how much of each ability, in which order? Supervised fine-tuning studies on PyTorch Lightning."""

__version__ = "0.1.0"
