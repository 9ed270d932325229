"""The command-line interface, one module per command."""

COMMANDS = {
    "train": ("bigramlm.cli.train", "train a model, resume a run, or run a sweep with -m"),
    "sample": ("bigramlm.cli.sample", "generate text with a trained model"),
    "look": ("bigramlm.cli.look", "write a page that shows what a model has learned"),
    "prepare": ("bigramlm.cli.prepare", "encode a long text into token files"),
    "runs": ("bigramlm.cli.runs", "list and compare runs, show sweep results, write a report"),
    "checkpoint": ("bigramlm.cli.checkpoint", "inspect, verify, strip, merge or export a checkpoint"),
    "verify_resume": ("bigramlm.cli.verify_resume", "check that a killed and resumed run gives the same bits"),
    "bench": ("bigramlm.dev.bench.main", "benchmark two variants by measuring them alternately"),
    "completion": ("bigramlm.cli.completion", "print a script for TAB completion in bash, zsh or fish"),
}
"""The module and the description of each command, by command name."""
