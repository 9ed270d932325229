"""Utilities without knowledge of models: paths, files, Hub, console, signals."""
