"""Texts, their two splits, and the batches drawn from them."""
