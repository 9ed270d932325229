"""Sampling from a trained model: python scripts/sample.py --help."""

from bigramlm.cli.sample import main

if __name__ == "__main__":
    main()
