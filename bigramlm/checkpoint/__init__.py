"""Checkpoints: the states of a run, saved whole or not at all.

`last` and `best` are small files with a folder's name in them, not links, which Windows does not give to everybody.
Resuming does not rely on `last`, but takes the newest folder that is whole. The optimizer's state is saved by the
parameters' names, not by their places. A checkpoint records which evaluation was counted last, so that a resumed run,
which repeats it, does not count it twice.
"""
