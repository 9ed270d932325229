"""Benchmarks, and what writes parts of the docs."""
