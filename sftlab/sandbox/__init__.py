"""Runs generated code in isolation."""
