"""Utilities that do not depend on models: paths, files, Hub, console, signals."""
