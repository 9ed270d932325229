"""Run folders: writing, reading, finding and comparing them.

summary.json is written to a temporary file, which is then renamed, so that readers never see a partly written file.

The status in summary.json changes from `running` to `completed`, `pruned`, `stopped` or `failed`. A killed run cannot
change its status. It is recognised by the lock on its folder: the training process holds this lock (see `filelock`),
and the operating system releases it when the process ends. A run with status `running` whose folder is not locked was
therefore killed.

All commands find runs with the same walk, which follows links to folders. A run that is refused before it trains leaves
no folder.
"""
