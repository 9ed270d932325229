"""The training loop, the training step, evaluation and the checks before training.

Compilation: On CUDA, a compiled step is also captured in a CUDA graph (`mode="reduce-overhead"`), so that a single
launch starts all kernels of the step. A CUDA graph requires fixed memory addresses, so all tensors that a step changes
are marked as static. If a step cannot be compiled, training continues without compilation and the log gives the reason.

Preflight: The checks before training use a copy of the model and restore the random state afterwards. Causality is
checked after two updates of this copy. Before any update, a projection that is initialised to zero would hide that the
model sees future tokens.
"""
