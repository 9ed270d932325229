"""Adapters: trained parameters beside frozen weights, built with peft.

Model: peft inserts the adapter's layers into the model in place, so the model is still a `GPT` for the rest of the
program.

Frozen weights: they require no gradient. The optimizer, the gradient norm and the preflight check therefore skip them.

Checkpoints: a checkpoint contains the adapter in peft's files, and base.json with the location of the base weights and
their SHA-256. The SHA-256 is that of the weight files, so every copy of the files has the same hash. A hash of the
loaded tensors could differ between machines: a base that is itself an adapter is merged into its own base on loading,
and a different machine may round the merged tensors differently.

Protection of the base: if the base is a run's checkpoint, a marker file (`step_<n>.kept`) beside the checkpoint
prevents that run from deleting it.

Tied weights: an adapter on one of two tied layers is refused before training, because merging the adapter would also
change the other layer.
"""
