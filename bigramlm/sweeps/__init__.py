"""Sweeps: many runs from one command.

Hydra's basic sweeper and Hydra's plugins are replaced, for these reasons:

- Basic sweeper: a failed job raises an exception at the end of the sweep, before any report. If the folder of one job
  cannot be created, no later job runs.
- joblib launcher: if one process is killed, the process pool breaks for all jobs.
- submitit launchers: the first killed job raises an exception, so the results of the other jobs are lost.
- Optuna sweeper: the plugin requires Optuna 2.

The replacements have the same names and fields. `prefer_our_presets` removes the originals.

The basic launcher gets one job at a time.

With joblib, each worker is a pool of one process. The pool comes from loky, which is part of joblib. The environment
variables of a worker set its number of threads and its GPU. A worker ignores all stop signals except SIGTERM, which the
sweep command sends to it. A worker exits when the sweep command does.

When a search resumes, trials may be unfinished because the earlier command was killed. Their jobs are completed, and
the results are read from the job summaries and reported to the study.
"""
