"""The folders of runs: writing one, reading any, finding and comparing them.

summary.json is written aside and renamed, so that it is whole at any moment; its status goes from `running` to
`completed`, `pruned`, `stopped` or `failed`. The lock of a folder is the operating system's (by `filelock`): it ends
with the process, so that none is ever left behind, and a run that says `running` without one was killed.
"""
