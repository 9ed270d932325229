"""List runs and tell them apart: python scripts/runs.py --help"""

from bigramlm.runs.find import main

if __name__ == "__main__":
    main()
