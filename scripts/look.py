"""What a model has learned, as a page: python scripts/look.py --help."""

from bigramlm.cli.look import main

if __name__ == "__main__":
    main()
