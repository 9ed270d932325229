"""Optimizers, and the learning rate of every step."""
