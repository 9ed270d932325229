"""Check that a killed and resumed run is bit-equal to a whole one: python scripts/verify_resume.py --help."""

from bigramlm.cli.verify_resume import main

if __name__ == "__main__":
    main()
