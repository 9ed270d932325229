"""Benchmarks in pairs: python scripts/bench.py --help."""

from bigramlm.dev.bench.main import main

if __name__ == "__main__":
    main()
