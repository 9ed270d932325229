"""Generator of the pictures in docs/: python scripts/pictures.py --help."""

from bigramlm.dev.pictures import main

if __name__ == "__main__":
    main()
