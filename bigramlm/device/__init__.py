"""The device: where a run computes, in which precision, on how many threads."""
