"""Many runs: the plan, the executor, workers, searches."""
