"""Tools for checkpoints: python scripts/checkpoint.py --help."""

from bigramlm.cli.checkpoint import main

if __name__ == "__main__":
    main()
