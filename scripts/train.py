"""Training of a model: python scripts/train.py --help."""

from bigramlm.cli.train import main

if __name__ == "__main__":
    main()
