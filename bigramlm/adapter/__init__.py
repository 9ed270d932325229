"""Adapters: parameters that are trained beside frozen weights, with peft.

`get_peft_model` inserts its layers into the model in place, so that the model remains a `GPT` for the rest of the
program. Frozen parameters require no gradient, and are therefore in no optimizer, no gradient norm and no preflight
check. A checkpoint contains the adapter in peft's files, and base.json with the location and the hash of the base
weights. The hash is that of files, which a copy shares, and not that of tensors: a base that is an adapter's run is
merged on loading, and another machine may round the result differently. A base that is a run's checkpoint gets a marker
(`step_<n>.kept`), so that its run does not delete it. An adapter that would break tied weights when merged is refused
before training.
"""
