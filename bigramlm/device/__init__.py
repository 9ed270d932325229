"""The device: where a run computes, in which precision, on how many threads, and what it can do at most.

Model FLOPs utilisation is what a step has to compute in matrix products (`LanguageModel.flops_per_token`), divided by
its time and by the device's peak. The peak is the maker's for GPUs in the table of `peak.py`, and measured by a matrix
product for any other.
"""
