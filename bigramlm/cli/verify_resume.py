"""The command `verify_resume`: compares resumed runs with an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bigramlm.cli import train
from bigramlm.cli.common import ArgumentParser, command
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import load
from bigramlm.engine.command_line import refuse_ranks, set_up_hydra
from bigramlm.errors import UserError, require
from bigramlm.logger.metrics import read_records
from bigramlm.runs.folder import read_summary
from bigramlm.utils import paths
from bigramlm.utils.console import show

# The default overrides: a short run that records and saves often, so that the first difference is found.
_DEFAULTS = {
    "trainer.steps": "40",
    "trainer.eval_every": "10",
    "trainer.log_every": "1",
    "trainer.checkpoint_every": "1",
    "sample.max_new_tokens": "50",
    "logger": "none",
}
# The fields that the command needs for its runs, in a temporary folder.
_ITS_OWN = ("resume", "sweep", "hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "trainer.keep_checkpoints")
_TIMINGS = ("seconds", "tokens_per_second", "mfu")


def parser() -> ArgumentParser:
    """Return the parser of the arguments."""
    parser = ArgumentParser(
        "verify_resume.py",
        description="Trains a run of 2N steps without interruption. Trains the same run again, kills it after N steps, "
        "and resumes it. Reports whether both runs are bit-equal, or else the first difference in weights, optimizer, "
        "random state, records or sample.",
        epilog="Default overrides, so that 2N is 40 and every step is saved and recorded: "
        + " ".join(f"{name}={value}" for name, value in _DEFAULTS.items()),
    )
    parser.add_argument(
        "overrides", nargs="*", help="the config, as for train.py, such as model=bigram trainer.steps=200"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=0,
        help="the number of runs to kill at random moments (default: one run, after N steps)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the random moments (default: 0)")
    return parser


@command
def main() -> None:
    """Run the command line: python scripts/verify_resume.py [overrides].

    The exit code is 1 if a resumed run differs from the uninterrupted run.
    """
    arguments = parser().parse_args()
    refuse_ranks()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the temporary folder is deleted
    for word in Overrides.typed(arguments.overrides).only(*_ITS_OWN):
        raise UserError(
            f"{word.field}={word.value}: this command starts and resumes runs of its own; omit {word.field}="
        )
    require(arguments.kills >= 0, f"--kills={arguments.kills}: must be 0 or more")
    with tempfile.TemporaryDirectory(prefix="bigramlm-resume-") as folder:
        set_up_hydra(arguments.overrides)
        differences = verify(arguments.overrides, Path(folder), kills=arguments.kills, seed=arguments.seed)
    sys.exit(1 if differences else 0)


def verify(overrides: list[str], folder: Path, *, kills: int, seed: int = 0) -> list[str]:
    """Kill and resume runs, and compare each with an uninterrupted run.

    folder: an empty folder for the runs. kills: the number of runs that are killed at random moments; if 0, a single
    run is killed after half of its steps. seed: the seed of the random moments. Returns one line per run that differs,
    so an empty list means that all runs are bit-equal. Raises UserError if a run cannot be interrupted, or if it fails.
    """
    given = Overrides(overrides)
    config = [*overrides, *(f"{name}={value}" for name, value in _DEFAULTS.items() if not given.has(name))]
    config.append("trainer.keep_checkpoints=1000000")
    reference = folder / "whole"
    seconds = _complete(reference, [*config, f"hydra.run.dir={reference}"])
    cfg = load(reference / "config.yaml")
    require(
        cfg.model.trains,
        f"model={cfg.model.name}: a model fitted by counting has no steps to interrupt; choose a different model",
    )
    if cfg.init_from is not None:  # the checkpoint of a run that may train on
        config = [*Overrides(config).without("init_from").words, f"init_from={cfg.init_from}"]
    steps = cfg.trainer.steps
    require(steps >= 2, f"trainer.steps={steps}: must be 2 or more, so that the run can be killed halfway")
    moments, differences, killed_in_save = random.Random(seed), [], 0
    for number in tqdm(range(max(kills, 1)), unit=" kills", disable=None, leave=False):
        run = folder / f"killed_{number}"
        if kills:
            step = _killed(run, [*config, f"hydra.run.dir={run}"], after=moments.uniform(0, seconds))
        else:
            step = _killed(run, [*config, f"hydra.run.dir={run}"], at_step=steps // 2)
        killed_in_save += any((run / "checkpoints").glob(".step_*"))
        if (read_summary(run) or {}).get("status") != "completed":  # the kill may come after the run was completed
            _complete(run, [f"resume={run}", *given.only("extensions").words])
        difference = compare(reference, run)
        if difference is not None:
            differences.append(f"killed at step {step}: {difference}")
            show(differences[-1])
    if kills:
        n_equal = kills - len(differences)
        show(f"{n_equal} of {kills} runs bit-equal; {killed_in_save} runs were killed in the middle of a save")
    elif not differences:
        show(f"bit-equal: a run of {steps} steps, and the same run killed at step {step} and resumed")
    return differences


def compare(reference: Path, resumed: Path, *, may_add: bool = False) -> str | None:
    """Find the first difference between an uninterrupted and a resumed run.

    may_add: ignore fields of the records that only the second run has, as between two versions of bigramlm.
    Returns a description with the step and the part that differs, or None if the runs are bit-equal.
    """
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.checkpoint.manager import Checkpoints

    managers = [Checkpoints(run / "checkpoints") for run in (reference, resumed)]
    steps, resumed_steps = (manager.steps() for manager in managers)
    for step in sorted({*steps} | {*resumed_steps}):
        if step not in steps or step not in resumed_steps:
            return f"step {step}: only the {'uninterrupted' if step in steps else 'resumed'} run has a checkpoint"
        a, b = (Checkpoint(manager.folder / f"step_{step}") for manager in managers)
        for name in sorted(a.manifest["files"].keys() - {"state.json", "config.yaml", "base.json"}):
            if a.manifest["files"][name] != b.manifest["files"][name] and not _same_adapter(
                a.path / name, b.path / name
            ):
                return f"step {step}: {_first_tensor(a.path / name, b.path / name)}"
        for name in a.state.keys() | b.state.keys():
            if name not in ("seconds", "metrics_bytes", "summary") and a.state.get(name) != b.state.get(name):
                return f"step {step}: state.json: {name} differs"
    for a_path, b_path in ((reference / name, resumed / name) for name in ("checkpoints/best", "samples.txt")):
        if _text(a_path) != _text(b_path):
            return f"step {steps[-1]}: {a_path.name} differs"
    records = [
        [_without_timings(record) for record in read_records(run / "metrics.jsonl")] for run in (reference, resumed)
    ]
    for one, other in zip(*records, strict=False):
        names = one.keys() if may_add else {**one, **other}.keys()
        if differing := [name for name in names if one.get(name) != other.get(name)]:
            return f"step {min(one['step'], other['step'])}: the records differ in {', '.join(differing)}"
    if len(records[0]) != len(records[1]):
        return f"{len(records[0])} records in the uninterrupted run, {len(records[1])} in the resumed run"
    return None


def _killed(run: Path, arguments: list[str], *, after: float = 0.0, at_step: int | None = None) -> int:
    """Run a training process, and kill it at a step or after some seconds.

    after: the number of seconds after the run has written config.yaml, because before that there is nothing to resume.
    at_step: the step at which to kill the process; if given, `after` is ignored. Returns at_step if given; otherwise
    the newest saved step, or -1 if no step was saved.
    """
    since = None
    with _running(run, arguments, at_step) as process:
        while process.is_alive():
            if since is None and (run / "config.yaml").exists():
                since = time.perf_counter()
            if at_step is None and since is not None and time.perf_counter() - since >= after:
                break
            time.sleep(0.0005)
    if process.exitcode > 0:  # the process failed before the kill
        _fail(run, process.exitcode)
    if at_step is not None:
        require(process.exitcode != 0, f"the run completed before step {at_step}")
        return at_step
    steps = (paths.step_of(path.name) for path in run.glob("checkpoints/step_*"))
    return max((step for step in steps if step is not None), default=-1)


def _complete(run: Path, arguments: list[str]) -> float:
    """Run a training process to its end.

    Returns the number of seconds between the writing of config.yaml and the end of the process.
    """
    since = None
    with _running(run, arguments) as process:
        while process.is_alive():
            if since is None and (run / "config.yaml").exists():
                since = time.perf_counter()
            time.sleep(0.001)
    if process.exitcode != 0 or since is None:
        _fail(run, process.exitcode)
    assert since is not None
    return time.perf_counter() - since


@contextlib.contextmanager
def _running(run: Path, arguments: list[str], killed_at: int | None = None) -> Iterator[Any]:
    """Start a training process, and kill it when the block ends.

    killed_at: the step at which the process kills itself; if None, the process trains to the end. On Linux, the process
    is forked, so that many short runs do not each spend 1.5 s on importing torch.
    """
    import filelock  # noqa: F401 - imported before the fork, as the modules below

    import bigramlm.trainer.preflight
    import bigramlm.trainer.trainer  # noqa: F401

    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=_train, args=(arguments, run.with_suffix(".log"), killed_at))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _train(arguments: list[str], log: Path, killed_at: int | None) -> None:
    from bigramlm.trainer.trainer import Trainer

    original_update = Trainer.update

    def update_and_kill(trainer: Trainer) -> Any:
        result = original_update(trainer)
        if killed_at is not None and trainer.progress.step >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        return result

    Trainer.update = update_and_kill  # type: ignore[method-assign,assignment]
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["train.py", *arguments]
    train.main()


def _fail(run: Path, code: int | None) -> None:
    lines = run.with_suffix(".log").read_text("utf-8", "replace").strip().splitlines() or ["no output"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # The folder is deleted now, so the run in it cannot be continued.
    message = re.sub(rf"; [^;]*resume={re.escape(str(run))}[^;]*", "", errors[-1] if errors else lines[0])
    raise UserError(f"a run ended with exit code {code}: {message}")


def _first_tensor(a: Path, b: Path) -> str:
    from safetensors.numpy import load_file

    if a.suffix != ".safetensors":
        return f"{a.name} differs"
    one, other = load_file(a), load_file(b)
    names = [name for name in one if name not in other or one[name].tobytes() != other[name].tobytes()]
    return f"{a.name}: {names[0]} differs" if names else f"{a.name}: the names of the tensors differ"


def _same_adapter(a: Path, b: Path) -> bool:
    """Return True if two adapter configs differ at most in the location of the base."""
    if a.name != "adapter_config.json":
        return False
    one, other = (json.loads(path.read_text("utf-8")) for path in (a, b))
    return bool({**one, "base_model_name_or_path": ""} == {**other, "base_model_name_or_path": ""})


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None  # a pruned run has no sample


def _without_timings(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _TIMINGS}


if __name__ == "__main__":
    main()
