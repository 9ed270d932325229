"""Benchmarks, and generators of parts of the documentation."""
