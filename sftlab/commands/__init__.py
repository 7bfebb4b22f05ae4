"""The commands of ``python -m sftlab``, one a file, each with ``main(arguments)``."""
