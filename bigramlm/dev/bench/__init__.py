"""Benchmarks that compare two things in one run, in alternating pairs: machines are noisy, ratios less so.

What is printed is the median over the pairs, with the least and the greatest.
"""
