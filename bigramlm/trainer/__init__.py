"""The loop that trains a model, and its parts.

On CUDA a compiled step is captured in a CUDA graph too (`mode="reduce-overhead"`), so that it is one launch; for that,
every tensor that a step changes is marked as one that stays in its place. What does not compile is taken uncompiled,
and the log says why. Preflight runs on a copy of the model, under a random state of its own; it looks for a leak from
the future after two steps of that copy, because a projection that starts at zero lets nothing through at first.
"""
