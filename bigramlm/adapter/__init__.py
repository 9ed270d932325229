"""Adapters: what is trained beside frozen weights, by peft.

`get_peft_model` puts its layers into ours in place, so that the model stays a `GPT` to everything else. What is frozen
requires no gradient, and so is in no optimizer, no norm and no preflight check. A checkpoint holds the adapter in
peft's files, and base.json with the place and the hash of the weights beside it. The hash is of files, which a copy
has too, and not of tensors: a base that is itself an adapter's run is merged on loading, and another machine may round
that differently. A base that is a run's checkpoint gets a mark (`step_<n>.kept`), so that its run does not delete it.
What would break a tied weight when merged is refused before training.
"""
