"""The folders of runs: writing one, reading and finding others."""
