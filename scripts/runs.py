"""List runs and tell them apart: python scripts/runs.py --help."""

from bigramlm.cli.runs import main

if __name__ == "__main__":
    main()
