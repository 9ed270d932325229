"""Tokenizers, which convert text to token ids and back.

BPE and WordPiece vocabularies are learned and applied by Hugging Face's `tokenizers`. `SubwordTokenizer` wraps a
tokenizer of this library, and caches the tokens of each word. The cache helps because a text repeats its words, and is
possible because in GPT-2's and BERT's splitting no token crosses the end of a word. Tests compare the result with the
library's encoding of the whole text.

Checkpoints, token files and summaries identify a tokenizer by the SHA-256 of its file.
"""
