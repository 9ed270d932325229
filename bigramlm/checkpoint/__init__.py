"""Checkpoints: the saved states of a run, each complete or absent.

`last` and `best` are small files that contain the name of a checkpoint folder. They are not links, because Windows does
not let every user create links. Resuming does not depend on `last`: it uses the newest complete checkpoint.

The optimizer state is saved by parameter name and not by parameter index.

A checkpoint records the step of the last evaluation. A resumed run repeats this evaluation, and the record prevents
early stopping from counting it twice.

A run deletes its old checkpoints at any moment. Other processes that read one of them continue with the newest one.
"""
