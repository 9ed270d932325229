"""Installation into .venv, by a Python that has nothing installed."""

import runpy
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"error: Python {sys.version.split()[0]} is too old; 3.10 or newer is needed, e.g. make PYTHON=python3.12")
runpy.run_path(sys.path[0] + "/../bigramlm/dev/install.py", run_name="__main__")
