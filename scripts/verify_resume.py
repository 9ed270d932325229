"""Verification of resumed runs: python scripts/verify_resume.py --help."""

from bigramlm.cli.verify_resume import main

if __name__ == "__main__":
    main()
