"""Page of what a model has learned: python scripts/look.py --help."""

from bigramlm.cli.look import main

if __name__ == "__main__":
    main()
