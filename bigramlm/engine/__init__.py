"""The engine of a run: from its config to its sample."""
