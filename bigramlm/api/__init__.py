"""The Python API: train, sweep, load and compose.

The functions take the same overrides as the command line and leave the same folders. They run in the interpreter of the
caller and restore its state afterwards (`state.py`). `bigramlm/__init__.py` makes them public.
"""

from bigramlm.config.extensions import register

__all__ = ["register"]
