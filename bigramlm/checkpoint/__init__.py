"""The states of a run, saved whole or not at all."""
