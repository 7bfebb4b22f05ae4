"""The commands of ``python -m sftlab``, one per file, each with ``main(arguments)``."""
