"""Look into checkpoints: python scripts/checkpoint.py --help"""

from bigramlm.checkpoint_tool import main

if __name__ == "__main__":
    main()
