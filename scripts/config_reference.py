"""Generator of docs/config.md: python scripts/config_reference.py."""

from bigramlm.dev.config_reference import main

if __name__ == "__main__":
    main()
