"""The command `checkpoint`: what is in a checkpoint, whether it is whole, and what others can use of it."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from safetensors import safe_open

from bigramlm.adapter.lora import ADAPTER
from bigramlm.checkpoint.checkpoint import CONFIG, Checkpoint
from bigramlm.checkpoint.format import MODEL
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.cli.common import command
from bigramlm.config.run_config import RunConfig, load
from bigramlm.engine.export import export, export_adapter, merge
from bigramlm.engine.load import open_checkpoint
from bigramlm.errors import UserError, require
from bigramlm.runs import find as runs
from bigramlm.runs.folder import RunFolder, read_summary
from bigramlm.utils.console import relative, show, table
from bigramlm.utils.files import require_new


@command
def main() -> None:
    """Run the command line: python scripts/checkpoint.py COMMAND PATH. Exit code 2: damaged, or to be mended."""
    parser = argparse.ArgumentParser("checkpoint.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in {
        "inspect": "say what is in a checkpoint; of a run, in its newest",
        "verify": "read every file and compare it with what was saved; of a run, all its checkpoints",
        "strip": "take out what only training needs, the optimizer's state: to sample from, or to give away",
        "merge": "write an adapter and its base as one model's weights, a checkpoint that needs no peft",
        "export": "write a folder that transformers loads, the tokenizer included",
    }.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("path", help="a checkpoint's folder or a run's, or latest")
        if name == "strip":
            command.add_argument("--output", type=Path, help="a folder to write to; else it is done in place")
        if name in ("merge", "export"):
            command.add_argument("folder", type=Path, help="a new folder to write to")
            command.add_argument("--base", help="where an adapter's base is, if it has moved since it was trained")
        if name == "export":
            only = "of an adapter, write it alone, for peft beside the base in transformers; else it is merged"
            command.add_argument("--adapter", action="store_true", help=only)
    arguments = parser.parse_args()
    if arguments.command == "inspect":
        inspect(arguments.path)
    elif arguments.command == "verify":
        verify(arguments.path)
    elif arguments.command == "strip":
        strip(arguments.path, arguments.output)
    elif arguments.command == "merge":
        show(merge(arguments.path, arguments.folder, arguments.base))
    elif arguments.adapter:
        show(export_adapter(arguments.path, arguments.folder, arguments.base))
    else:
        show(export(arguments.path, arguments.folder, arguments.base))


def inspect(where: str) -> None:
    """Print what is in a checkpoint."""
    checkpoint = open_checkpoint(where)
    cfg = load(checkpoint.path / CONFIG)
    best = checkpoint.best
    facts = {
        "checkpoint": relative(checkpoint.path),
        "step": f"{checkpoint.step:,}, after {checkpoint.progress.seconds:,.1f} s of training",
        "best": f"val loss {best['val/loss']:.4f} at step {best['step']:,}" if best else "not evaluated yet",
        "model": " ".join(f"{name}={value}" for name, value in vars(cfg.model).items()),
        **_adapter_facts(checkpoint, cfg),
        "tokenizer": f"{cfg.tokenizer.name}, {checkpoint.tokenizer(cfg.tokenizer).vocab_size:,} tokens",
        "block size": cfg.data.block_size,
        "trained on": cfg.data.name,
        "seed": cfg.seed,
        "resume": "no, it is stripped: init_from= starts a new run from it" if checkpoint.stripped else "yes",
    }
    width = max(map(len, facts)) + 2
    show("\n".join(f"{name:<{width}}{value}" for name, value in facts.items()) + "\n")
    files = checkpoint.manifest["files"].items()
    show(
        table(("file", "bytes", "SHA-256"), [(n, f"{seal['bytes']:,}", seal["sha256"][:16]) for n, seal in files])
        + "\n"
    )
    with safe_open(checkpoint.path / (ADAPTER if checkpoint.is_adapter else MODEL), "pt") as file:
        tensors = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - not a dictionary
        rows = [
            (name, str(tuple(part.get_shape())), part.get_dtype(), f"{math.prod(part.get_shape()):,}")
            for name, part in tensors
        ]
    show(table(("tensor", "shape", "type", "numbers"), rows))


def _adapter_facts(checkpoint: Checkpoint, cfg: RunConfig) -> dict[str, str]:
    if not checkpoint.is_adapter:
        return {}
    base = checkpoint.base()
    said = " ".join(f"{name}={value}" for name, value in vars(cfg.adapter).items())
    return {"adapter": said, "base": f"{relative(Path(base.location))} (SHA-256 {base.sha256[:12]}), not in it"}


def verify(where: str) -> None:
    """Print of each checkpoint that it is whole, or what is wrong with it; exit code 2 for the latter."""
    whole = True
    for path in _paths(where):
        try:
            checkpoint = Checkpoint(path)
            files = checkpoint.manifest["files"].values()
            stripped = ", stripped" if checkpoint.stripped else ""
            show(f"whole     {relative(path)}: {len(files)} files, {sum(f['bytes'] for f in files):,} bytes{stripped}")
        except UserError as error:
            whole = False
            show(f"not whole {error}")
    if not whole:
        sys.exit(2)


def strip(where: str, output: Path | None) -> None:
    """Strip a checkpoint, or each of a run's, in place or into another folder."""
    found = [Checkpoint(path) for path in _paths(where)]
    status = (read_summary(runs.find(where)) or {}).get("status", "completed")
    require(
        output is not None or status == "completed",
        f"{where}: is {status}, and could not be resumed then; give --output FOLDER, or name one checkpoint's folder",
    )
    if output is not None:
        if len(found) > 1:
            found = [open_checkpoint(where)]
        require_new(output)
        found[0].strip(output)
        show(f"stripped {relative(found[0].path)} into {output}: {_size(found[0].path)} -> {_size(output)} bytes")
        return
    for checkpoint in found:
        if checkpoint.stripped:
            show(f"{relative(checkpoint.path)}: is stripped already")
            continue
        before, run = _size(checkpoint.path), checkpoint.path.parent.parent
        if (run / "summary.json").exists():
            with RunFolder(run).lock():
                checkpoint.strip(checkpoint.path)
        else:
            checkpoint.strip(checkpoint.path)
        show(
            f"stripped {relative(checkpoint.path)}: {before} -> {_size(checkpoint.path)} bytes; "
            "no run can be resumed from it now"
        )


def _paths(where: str) -> list[Path]:
    folder = runs.find(where)
    checkpoints = Checkpoints(folder / "checkpoints")
    steps = checkpoints.steps()
    if (folder / "summary.json").exists() and not steps:
        raise UserError(f"{where}: holds no checkpoint")
    return [checkpoints.folder / f"step_{step}" for step in steps] or [folder]


def _size(path: Path) -> str:
    return f"{sum(file.stat().st_size for file in path.iterdir()):,}"
