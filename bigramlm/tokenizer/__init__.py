"""Tokenizers, which convert text to token ids and back.

Hugging Face's `tokenizers` trains and runs the learned ones. The class around this library caches the tokens of each
word, because a text repeats its words and GPT-2's and BERT's splitting let no token cross the end of a word. Tests
compare the result with the library's encoding of the whole text. Checkpoints, token files and summaries identify a
tokenizer by the SHA-256 of its file.
"""
