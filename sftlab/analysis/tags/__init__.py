"""What users ask for, as tags."""
