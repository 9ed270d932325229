"""Utilities that know nothing of models or runs: paths, files, the hub, the console, progress, signals."""
