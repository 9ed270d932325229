"""Execution of runs, and loading and export of the models that they train."""
