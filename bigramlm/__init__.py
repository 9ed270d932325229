"""A config-driven experiment framework for small language models."""
