"""Benchmarks that measure two variants alternately, in pairs.

Times on a machine vary, but the ratio of two times measured one after the other varies less. The output is the median
over the pairs, with the minimum and the maximum.
"""
