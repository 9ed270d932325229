"""Checkpoints: the saved states of a run, each complete or absent.

`last` and `best` are small files that contain a folder's name. They are not links, because Windows does not let every
user create links. Resuming does not depend on `last`: it uses the newest complete folder. The optimizer state is saved
by parameter name and not by index. A checkpoint records the last evaluation that was counted, so that a resumed run,
which repeats this evaluation, does not count it twice.
"""
