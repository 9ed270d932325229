"""Take the pictures in the docs: python scripts/pictures.py --help."""

from bigramlm.dev.pictures import main

if __name__ == "__main__":
    main()
