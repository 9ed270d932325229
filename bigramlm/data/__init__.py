"""Texts, their two splits, and the batches drawn from them.

A `Text` is documents in files, cut into pieces of some 65,000 characters, between two words where possible. Where a
piece is cut depends on the document alone, so that a text in memory and one that streams from its files have the same
tokens. A `Corpus` is a text as token ids: arrays in memory for up to 16 million characters, token files (`tokens.py`)
for a longer text, which workers encode (`encoding.py`) and one process writes in order. progress.json says what counts
as written; it is renamed into place after the tokens are on the disk, and whatever came after it is cut off. So an
interruption at any moment costs the last stretch alone. The manifest completes the folder. A mapped file is a tensor
like any other, but it stays on the CPU: batches are gathered from it and then sent.

A split is a `Stream` of tokens, of which rows are random stretches, or `Examples` of prompt and completion, each a row
by itself, which are used in epochs, permuted by (seed, epoch). The batch of step n is a pure function of (seed, n).
Targets that do not count are -100, which PyTorch's cross-entropy leaves out: models know nothing of it, evaluation
counts what is left, and the parts of an update are weighted by it. All rows of a run have one length, because a
compiled step has one shape.
"""
