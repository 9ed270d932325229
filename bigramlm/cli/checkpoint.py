"""The command `checkpoint`: inspects, verifies and converts checkpoints.

Modules that import torch are imported by the functions that need them, so that --help and TAB completion are fast.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.cli.common import ArgumentParser, command, output_path
from bigramlm.config.extensions import import_extensions, names_in
from bigramlm.errors import UserError, printable, require
from bigramlm.runs import find as runs
from bigramlm.runs.folder import RunFolder, read_summary, require_plain
from bigramlm.utils.console import relative, show, table
from bigramlm.utils.files import require_new
from bigramlm.utils.paths import step_of

if TYPE_CHECKING:
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.config.run_config import RunConfig


def parser() -> ArgumentParser:
    """Return the parser of the arguments."""
    parser = ArgumentParser("checkpoint.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in {
        "inspect": "print the contents of a checkpoint, or of the newest checkpoint of a run",
        "verify": "compare every file with its checksum, in a checkpoint or in all checkpoints of a run",
        "strip": "delete the training state (optimizer and random state), which is not needed for sampling",
        "merge": "merge an adapter into its base weights, and write a checkpoint that can be loaded without peft",
        "export": "write a folder with weights and tokenizer that Hugging Face's transformers can load",
    }.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("path", help="a checkpoint folder, a run folder, or latest")
        if name in ("inspect", "merge", "export"):
            command.add_argument("--extensions", help="Python files with the model or tokenizer: a.py,b.py")
        if name == "strip":
            command.add_argument("--output", type=output_path, help="the folder to write to (default: strip in place)")
        if name in ("merge", "export"):
            command.add_argument("folder", type=output_path, help="the new folder to write to")
            command.add_argument("--base", help="the current location of an adapter's base weights, if moved")
        if name == "export":
            about = "write only the adapter, for use with peft and its base in transformers, instead of merging it"
            command.add_argument("--adapter", action="store_true", help=about)
    return parser


@command
def main() -> None:
    """Run the command line: python scripts/checkpoint.py COMMAND PATH.

    The exit code is 2 for a damaged checkpoint or any other error that the user can fix.
    """
    arguments = parser().parse_args()
    from bigramlm.engine.export import export, export_adapter, merge

    import_extensions(names_in(getattr(arguments, "extensions", None)))
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
    """Print the config, progress, files and tensors of a checkpoint."""
    from bigramlm.engine.load import config_of, open_checkpoint

    checkpoint = open_checkpoint(where)
    tensors = checkpoint.follow(lambda: _tensors(checkpoint))
    cfg = config_of(checkpoint)
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
        "resume": "no, it is stripped; start a new run from it with init_from=" if checkpoint.stripped else "yes",
    }
    width = max(map(len, facts)) + 2
    show("\n".join(printable(f"{name:<{width}}{value}") for name, value in facts.items()) + "\n")
    files = checkpoint.manifest["files"].items()
    show(
        table(("file", "bytes", "SHA-256"), [(n, f"{seal['bytes']:,}", seal["sha256"][:16]) for n, seal in files])
        + "\n"
    )
    show(table(("tensor", "shape", "type", "elements"), tensors))


def _tensors(checkpoint: Checkpoint) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table of tensors."""
    from safetensors import safe_open

    from bigramlm.adapter.lora import ADAPTER
    from bigramlm.checkpoint.format import MODEL

    name = ADAPTER if checkpoint.is_adapter else MODEL
    with checkpoint.reading(name), safe_open(checkpoint.path / name, "pt") as file:
        tensors = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - not a dictionary
        return [
            (name, str(tuple(part.get_shape())), part.get_dtype(), f"{math.prod(part.get_shape()):,}")
            for name, part in tensors
        ]


def _adapter_facts(checkpoint: Checkpoint, cfg: RunConfig) -> dict[str, str]:
    if not checkpoint.is_adapter:
        return {}
    base = checkpoint.base()
    settings = " ".join(f"{name}={value}" for name, value in vars(cfg.adapter).items())
    return {
        "adapter": settings,
        "base": f"{relative(Path(base.location))} (SHA-256 {base.sha256[:12]}), stored separately",
    }


def verify(where: str) -> None:
    """Print whether a checkpoint, or each checkpoint of a run, is intact.

    Exits with code 2 if a file is missing or damaged. A checkpoint that its run deletes meanwhile is not damaged.
    """
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.checkpoint.format import MissingCheckpointError

    intact, given = True, runs.find(where)
    for path in _paths(given, where):
        try:
            checkpoint = Checkpoint(path)
        except UserError as error:
            if isinstance(error, MissingCheckpointError) and path != given:
                show(printable(f"deleted {relative(path)} by its run, while this command read it"))
                continue
            intact = False
            show(f"damaged {error}")
            continue
        files = checkpoint.manifest["files"].values()
        stripped = ", stripped" if checkpoint.stripped else ""
        size = f"{len(files)} files, {sum(f['bytes'] for f in files):,} bytes{stripped}"
        show(printable(f"intact  {relative(path)}: {size}"))
    if not intact:
        sys.exit(2)


def strip(where: str, output: Path | None) -> None:
    """Delete the training state from a checkpoint, or write a copy without it.

    where: a checkpoint or a run. output: the folder for the copy; if None, the checkpoint is stripped in place. For a
    run, either all checkpoints are stripped in place, or the newest intact checkpoint is copied. Raises UserError if
    the checkpoints of a run that is not completed would be stripped in place, because the run could not be resumed.
    """
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.engine.load import open_checkpoint

    folder = runs.find(where)
    checkpoints = _paths(folder, where)
    status = (read_summary(folder) or {}).get("status", "completed")
    require(
        output is not None or status == "completed",
        f"{where}: the run is {status}, and without the training state it could not be resumed; write a stripped copy "
        "with --output FOLDER, or give the folder of a single checkpoint",
    )
    if output is not None:
        source = open_checkpoint(str(folder))
        require_new(output)
        source.strip(output)
        sizes = f"{source.size:,} -> {_size(output)} bytes"
        show(printable(f"stripped {relative(source.path)} into {relative(output)}: {sizes}"))
        return
    if checkpoints != [folder]:
        require_plain(folder)
    for checkpoint in [Checkpoint(path) for path in checkpoints]:
        if checkpoint.stripped:
            show(printable(f"{relative(checkpoint.path)} is already stripped"))
            continue
        old_size, run = _size(checkpoint.path), checkpoint.path.parent.parent
        if (run / "summary.json").exists():
            with RunFolder(run).lock():
                checkpoint.strip(checkpoint.path)
        else:
            checkpoint.strip(checkpoint.path)
        sizes = f"{old_size} -> {_size(checkpoint.path)} bytes"
        show(printable(f"stripped {relative(checkpoint.path)}: {sizes}; a run can no longer be resumed from it"))


def _paths(folder: Path, where: str) -> list[Path]:
    """List the checkpoint folders of a run, or the given checkpoint folder alone.

    where: the folder as the user gave it, for messages.
    """
    from bigramlm.checkpoint.format import MANIFEST
    from bigramlm.checkpoint.manager import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    if steps := checkpoints.steps():
        return [checkpoints.folder / f"step_{step}" for step in steps]
    require(not (folder / "summary.json").exists(), f"{where}: the run contains no checkpoint")
    require(
        (folder / MANIFEST).exists() or step_of(folder.name) is not None,
        f"{where} is not a checkpoint and contains none; give the folder of a run or of a checkpoint",
    )
    return [folder]


def _size(path: Path) -> str:
    return f"{sum(file.stat().st_size for file in path.iterdir()):,}"


if __name__ == "__main__":
    main()
