"""Lists, comparisons and reports of runs: python scripts/runs.py --help."""

from bigramlm.cli.runs import main

if __name__ == "__main__":
    main()
