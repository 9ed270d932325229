"""The config of a run, what was typed to change it, and schemas for Hydra."""
