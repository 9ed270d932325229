"""Models: token ids in, logits of the next token out.

`LanguageModel` is the only interface through which the rest of the program uses a model. Every model computes logits
and the loss. Some models also provide counts of the training text, a cache for generation, the weight
matrices of their hidden layers, or reference losses.

A count-based model (`model=ngram`) has buffers and no parameters, and takes no training steps. Its buffers are empty
until it counts a text or loads a checkpoint, and then get their sizes from the text or the checkpoint.

The count tables are sorted arrays. An n-gram is found by the index of its context and its last token, which works for
any vocabulary, on any device and for a whole batch at once.

`huggingface.py` reads GPT-2's weights in Hugging Face's layout, and `exporting.py` writes them. config.json is
converted to the model config before Hydra composes the run's config, without importing torch. Overrides are then
applied to the model config, and the result is checked against the weights.
"""
