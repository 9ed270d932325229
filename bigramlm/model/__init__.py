"""Models: token ids in, logits of the next token out.

`LanguageModel` is the only interface of a model that the rest of the program uses: logits and loss and, if a model has
them, counts of the training text, a cache for generation, the matrices for Muon, and reference losses.

A model that is fitted by counting (`model=ngram`) has buffers and no parameters, and takes no training steps. Its
buffers are empty at first, and take the size that they have in a checkpoint. Its tables are sorted arrays, in which an
n-gram is found by the index of its context and its last token. This works for any vocabulary, on any device, and for a
whole batch at once.

`huggingface.py` reads and writes GPT-2's weights in Hugging Face's layout. Their config.json becomes the model's config
before Hydra composes the run's config, without importing torch. Overrides are applied on top, and compared with the
weights.
"""
