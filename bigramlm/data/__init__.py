"""Texts, their train and val splits, and the batches drawn from them.

A `Text` consists of documents in files, cut into pieces of about 65,000 characters, between two words where possible.
The cuts depend on the document alone, so a text in memory and a text streamed from its files have the same tokens. A
`Corpus` is a text as token ids: arrays in memory for up to 16 million characters, and token files (`tokens.py`) for a
longer text, which workers encode (`encoding.py`) and one process writes in order. progress.json records how much
counts as written. It is renamed into place after the tokens are on disk, and any bytes beyond that point are cut off,
so an interruption at any moment loses only the tokens written since the last record. The manifest completes the
folder. A memory-mapped file is a tensor like any other, but it stays on the CPU: batches are gathered from it and then
copied to the device.

A split is either a `Stream` of tokens, whose rows are random stretches, or `Examples`, where each row is one example of
prompt and completion; examples are used in epochs, permuted by (seed, epoch). The batch of step n is a pure function of
(seed, n). Targets without a loss are -100, the index that PyTorch's cross-entropy ignores: models need no mask,
evaluation counts the other targets, and the parts of an update are weighted by the number of those targets. All rows of
a run have the same length, because a compiled step has one shape.
"""
