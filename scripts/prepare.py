"""Preparation of token files: python scripts/prepare.py --help."""

from bigramlm.cli.prepare import main

if __name__ == "__main__":
    main()
