"""What is trained: models and pictures."""
