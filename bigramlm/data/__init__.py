"""Texts, their train and val splits, and the batches sampled from them.

- `text.py`: A `Text` consists of the documents in one or more files. Each document is cut into pieces of about 65,000
  characters, between two words if possible. The cuts depend on the document alone, so a text in memory and the same
  text streamed from its files are encoded as the same tokens.
- `reader.py`: The documents of a file. `content.py` gives its text as UTF-8, or says why it has none: the file is of
  another kind (`binaries.py`), or in another encoding. `formats.py` recognises JSON, and `tables.py` tables.
- `pairs.py`: `Pairs` are examples, each with a prompt and a completion.
- `corpus.py`: A `Corpus` is a text encoded as token ids. The ids are arrays in memory for a text of up to 16 million
  characters, and token files on disk for a longer text.
- `encoding.py` and `tokens.py`: Worker processes encode a long text, and one process writes the token files in text
  order. progress.json records how many tokens are written, and is replaced only after these tokens are on disk. A
  resumed preparation truncates the token files to the recorded length. An interruption therefore loses only the tokens
  written since the last record. The manifest is written last and marks the folder as complete.
- `batches.py`: A split is either a `Stream` of tokens, with rows at random positions, or `Examples`, with one example
  per row. Examples are used in epochs, each in an order that depends only on the seed and the epoch. The batch at a
  step depends only on the seed and the step.

Memory-mapped token files stay on the CPU: a batch is gathered from the file and then copied to the device.

Targets without a loss are -100, the index that PyTorch's cross-entropy ignores by default. Models therefore need no
mask, evaluation counts only the other targets, and the micro-batches of an update are weighted by the number of their
targets with a loss.

All rows of a run have the same length, because a step is compiled for one shape.
"""
