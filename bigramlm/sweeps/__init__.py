"""Sweeps: many runs by one command.

Hydra's basic sweeper and its plugins are replaced where they lose something: a failing job raises at the sweep's end
before anything is reported, a folder that cannot be made ends all jobs after it, joblib's pool breaks for all jobs
when one process is killed, submitit raises at the first job that was killed, the plugin for Optuna needs Optuna 2.
Ours keep their names and fields, and are found before theirs (`prefer_our_presets`).

In this process jobs are launched one by one. With joblib every worker is a pool of one, of joblib's own loky, with its
share of threads and a GPU in its environment; it heeds SIGTERM only, which the command passes on, and ends with the
command. When a search continues, what a killed command left open is reported to the study from the jobs' summaries.
"""
