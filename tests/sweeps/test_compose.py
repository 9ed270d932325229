"""Tests of the command that continues a sweep."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from tests.helpers import SHORT, Cli, Ended, table


def test_the_printed_command_continues_the_sweep(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path
) -> None:
    presets = tmp_path / "my presets"
    (presets / "experiment").mkdir(parents=True)
    (presets / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {steps: 4}\n")
    words = ["--config-dir", str(presets), "experiment=mine", "note=it's, a $note", "optim.lr=1e-3,1e30"]
    ended = swept(*SHORT, *words)
    assert ended.code == 1

    (line,) = (line for line in ended.out.splitlines() if line.startswith("To run the unfinished jobs: "))
    program, script, *arguments = shlex.split(line.removeprefix("To run the unfinished jobs: "))
    assert (program, script) == ("python", "scripts/train.py")
    assert "hydra.sweep.dir" not in line
    again = cli(*arguments, run_dir=False)
    assert "1 done, 1 started, 0 not started" in again.err, again.err
    assert [row["status"] for row in table(folder)] == ["completed", "failed"]
    assert json.loads((folder / "0" / "summary.json").read_text())["note"] == "it's, a $note"
