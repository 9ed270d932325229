"""Tokenizers: texts in, token ids out, and back.

They are trained and run by Hugging Face's `tokenizers`. Our class around it keeps the words that it has met with their
tokens, because a text repeats them: no token crosses the end of a word where GPT-2's or BERT's splitting ends one.
Tests hold that to the library's own encoding of the whole text. Checkpoints, token files and summaries identify a
tokenizer by the SHA-256 of its file.
"""
