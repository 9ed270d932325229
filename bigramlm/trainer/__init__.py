"""The loop that trains a model, and its parts."""
