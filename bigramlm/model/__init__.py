"""Models: token ids in, logits of the next token out.

`LanguageModel` is all that the rest of the program knows of one: logits and loss, and, where a model has them, counts
of the training text, a cache for generation, the matrices that Muon is for, and losses to compare it with.

A model that is fitted by counting (`model=ngram`) has buffers and no parameters. It takes no steps, and its buffers,
empty at first, take the size that a checkpoint has. Its tables are sorted arrays, in which a gram is found by its
context's place and its last token: that works for any vocabulary, on any device, for a whole batch at once.

`huggingface.py` reads and writes GPT-2's weights in Hugging Face's layout. Their config.json becomes the model's
config before Hydra composes, without torch; what is typed goes on top of it, and is compared with what the weights
are.
"""
