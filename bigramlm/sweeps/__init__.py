"""Sweeps: many runs from one command.

Hydra's basic sweeper and its plugins are replaced because they lose results: a failed job raises an exception at the
end of the sweep, before any report; a folder that cannot be created ends all later jobs; joblib's pool breaks for all
jobs when one process is killed; submitit raises an exception at the first killed job; the Optuna plugin requires
Optuna 2. The replacements keep the names and fields, and take precedence (`prefer_our_presets`).

The basic launcher gets one job at a time. With joblib, each worker is a pool of one process (of the loky that joblib
bundles), whose environment sets its share of the threads and its GPU. A worker reacts to SIGTERM only, which the
command passes on, and exits when the command does. When a search resumes, the trials that a killed command left open
are reported to the study from the summaries of their jobs.
"""
