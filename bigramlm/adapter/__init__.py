"""What is trained beside weights that stay as they are."""
