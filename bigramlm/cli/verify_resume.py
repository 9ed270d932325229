"""The command `verify_resume`: compares runs that are killed and resumed with one that is not, bit by bit."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bigramlm.cli import train
from bigramlm.cli.common import command
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import load
from bigramlm.errors import UserError, require
from bigramlm.logger.metrics import read_records
from bigramlm.runs.folder import read_summary
from bigramlm.utils import paths
from bigramlm.utils.console import show

# What is taken where nothing else is typed: short, with everything that can differ recorded and saved often.
_SHORT = {
    "trainer.steps": "40",
    "trainer.eval_every": "10",
    "trainer.log_every": "1",
    "trainer.checkpoint_every": "1",
    "sample.max_new_tokens": "50",
    "logger": "none",
}
_BY_THE_CLOCK = ("seconds", "tokens_per_second", "mfu")


@command
def main() -> None:
    """Run the command line: python scripts/verify_resume.py [overrides]. Exit code 1 where a run parts."""
    parser = argparse.ArgumentParser(
        "verify_resume.py",
        description="Trains 2N steps; and N, a kill, and N more. Says whether they are bit-equal, or where they part: "
        "weights, optimizer, random state, every record, the sample.",
        epilog="Without overrides 2N is 40, and every step is saved and recorded: "
        + " ".join(f"{name}={value}" for name, value in _SHORT.items()),
    )
    parser.add_argument(
        "overrides", nargs="*", help="the config, as for train.py, such as model=bigram trainer.steps=200"
    )
    parser.add_argument("--kills", type=int, default=0, help="kill so many runs at random moments, instead of one at N")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and remove the folder
    wrong = Overrides(arguments.overrides).only("resume").words
    require(not wrong, f"{wrong and wrong[0]}: the runs are made, and resumed, here; leave it out")
    require(arguments.kills >= 0, f"--kills={arguments.kills}: must be 0 or more")
    with tempfile.TemporaryDirectory(prefix="bigramlm-resume-") as place:
        parted = verify(arguments.overrides, Path(place), kills=arguments.kills, seed=arguments.seed)
    sys.exit(1 if parted else 0)


def verify(overrides: list[str], place: Path, *, kills: int, seed: int = 0) -> list[str]:
    """List how the killed and resumed runs differ from the whole one, a line each; empty if all are bit-equal.

    place: an empty folder for the runs; kills: how many runs are killed at random moments; 0 is one, at half its steps.
    UserError where a run ends otherwise than it should.
    """
    typed = Overrides(overrides)
    config = [*overrides, *(f"{name}={value}" for name, value in _SHORT.items() if not typed.has(name))]
    config.append("trainer.keep_checkpoints=1000000")
    whole = place / "whole"
    seconds = _complete(whole, [*config, f"hydra.run.dir={whole}"])
    cfg = load(whole / "config.yaml")
    require(cfg.model.trains, f"model={cfg.model.name}: is counted, and takes no steps that could be interrupted")
    steps = cfg.trainer.steps
    require(steps >= 2, f"trainer.steps={steps}: must be 2 or more, to be cut in two")
    moments, parted, in_a_save = random.Random(seed), [], 0
    for number in tqdm(range(max(kills, 1)), unit=" kills", disable=None, leave=False):
        run = place / f"killed_{number}"
        if kills:
            step = _killed(run, [*config, f"hydra.run.dir={run}"], after=moments.uniform(0, seconds))
        else:
            step = _killed(run, [*config, f"hydra.run.dir={run}"], at_step=steps // 2)
        in_a_save += any((run / "checkpoints").glob(".step_*"))
        if (read_summary(run) or {}).get("status") != "completed":  # it was killed on its way out
            _complete(run, [f"resume={run}"])
        difference = compare(whole, run)
        if difference is not None:
            parted.append(f"killed at step {step}: {difference}")
            show(parted[-1])
    if kills:
        show(f"{kills - len(parted)} of {kills} bit-equal; {in_a_save} of them were killed in the middle of a save")
    elif not parted:
        show(f"bit-equal: {steps} steps, and {step}, a kill, and {steps - step} more")
    return parted


def compare(whole: Path, resumed: Path) -> str | None:
    """Find the first step at which two runs differ, and in what; None if they are bit-equal."""
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.checkpoint.manager import Checkpoints

    checkpoints = [Checkpoints(run / "checkpoints") for run in (whole, resumed)]
    steps, others = (of.steps() for of in checkpoints)
    for step in sorted({*steps} | {*others}):
        if step not in steps or step not in others:
            return f"step {step}: a checkpoint in the {'whole' if step in steps else 'resumed'} run alone"
        a, b = (Checkpoint(of.folder / f"step_{step}") for of in checkpoints)
        for name in sorted(a.manifest["files"].keys() - {"state.json", "config.yaml", "base.json"}):
            if a.manifest["files"][name] != b.manifest["files"][name] and not _same_adapter(
                a.path / name, b.path / name
            ):
                return f"step {step}: {_first_tensor(a.path / name, b.path / name)}"
        for name in a.state.keys() | b.state.keys():
            if name != "seconds" and a.state.get(name) != b.state.get(name):
                return f"step {step}: state.json: {name} differs"
    for a_path, b_path in ((whole / name, resumed / name) for name in ("checkpoints/best", "samples.txt")):
        if _text(a_path) != _text(b_path):
            return f"step {steps[-1]}: {a_path.name} differs"
    records = [[_timeless(record) for record in read_records(run / "metrics.jsonl")] for run in (whole, resumed)]
    for one, other in zip(*records, strict=False):
        if one != other:
            differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            return f"step {min(one['step'], other['step'])}: the records differ in {', '.join(differing)}"
    if len(records[0]) != len(records[1]):
        return f"{len(records[0])} records in the whole run, {len(records[1])} in the resumed"
    return None


def _killed(run: Path, arguments: list[str], *, after: float = 0.0, at_step: int | None = None) -> int:
    # Kills a run at a step, or some seconds after it has a config: before that it has not begun, and there is nothing
    # to resume. Returns the newest step that was saved, or the one that it was killed at; -1 for none.
    since = None
    with _running(run, arguments, at_step) as process:
        while process.is_alive():
            if since is None and (run / "config.yaml").exists():
                since = time.perf_counter()
            if at_step is None and since is not None and time.perf_counter() - since >= after:
                break
            time.sleep(0.0005)
    if process.exitcode > 0:  # it was not the kill that ended it
        _fail(run, process.exitcode)
    if at_step is not None:
        require(process.exitcode != 0, f"the run was complete before its step {at_step}")
        return at_step
    steps = (paths.step_of(path.name) for path in run.glob("checkpoints/step_*"))
    return max((step for step in steps if step is not None), default=-1)


def _complete(run: Path, arguments: list[str]) -> float:
    # Returns the seconds from the config to the end.
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
    # A process that trains; it is gone when this is left. On Linux a fork saves each of many short runs the second and
    # a half that importing torch takes.
    import filelock  # noqa: F401 - imported here, so that every fork has it

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

    update = Trainer.update

    def killed_after(trainer: Trainer) -> Any:
        result = update(trainer)
        if killed_at is not None and trainer.progress.step >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        return result

    Trainer.update = killed_after  # type: ignore[method-assign,assignment]
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["train.py", *arguments]
    train.main()


def _fail(run: Path, code: int | None) -> None:
    said = run.with_suffix(".log").read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    errors = [line for line in said if line.startswith("error: ")]
    raise UserError(f"a run ended with exit code {code}: {errors[-1] if errors else said[0]}")


def _first_tensor(a: Path, b: Path) -> str:
    from safetensors.numpy import load_file

    if a.suffix != ".safetensors":
        return f"{a.name} differs"
    one, other = load_file(a), load_file(b)
    names = [name for name in one if name not in other or one[name].tobytes() != other[name].tobytes()]
    return f"{a.name}: {names[0]} differs" if names else f"{a.name} differs in its names"


def _same_adapter(a: Path, b: Path) -> bool:
    # Whether two files of an adapter's config differ in nothing but in where its base is.
    if a.name != "adapter_config.json":
        return False
    one, other = (json.loads(path.read_text("utf-8")) for path in (a, b))
    return bool({**one, "base_model_name_or_path": ""} == {**other, "base_model_name_or_path": ""})


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None  # a run that was pruned has no sample


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _BY_THE_CLOCK}
