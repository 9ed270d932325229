"""The training loop and its parts.

On CUDA, a compiled step is also captured in a CUDA graph (`mode="reduce-overhead"`), so that one launch starts all of
its kernels. The capture requires that every tensor that a step changes stays at its address, so these tensors are
marked as static. If a step does not compile, training continues uncompiled and the log reports why.

Preflight runs on a copy of the model with its own random state. It checks causality after two steps of this copy,
because a projection that is initialised to zero hides a leak from the future at first.
"""
