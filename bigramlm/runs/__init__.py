"""Run folders: writing, reading, finding and comparing them.

summary.json is written to a temporary file and renamed, so that readers never see a partial file. Its status changes
from `running` to `completed`, `pruned`, `stopped` or `failed`. A folder is locked by the operating system (through
`filelock`), and the lock ends with the process: a run with status `running` whose folder is not locked was killed.
"""
