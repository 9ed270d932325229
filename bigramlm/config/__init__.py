"""The run config, its overrides, and the schemas for Hydra."""
