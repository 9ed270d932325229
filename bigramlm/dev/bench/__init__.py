"""Benchmarks that compare two variants in alternating pairs.

Machines are noisy, but ratios within a pair are less so. The output is the median over the pairs, with the minimum and
the maximum.
"""
