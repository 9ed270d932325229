"""TAB completion in the shell: python scripts/completion.py --help."""

from bigramlm.cli.completion import main

if __name__ == "__main__":
    main()
