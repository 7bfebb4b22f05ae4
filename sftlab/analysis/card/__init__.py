"""What a mixture is made of."""
