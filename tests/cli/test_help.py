"""Tests of --help: the choices of every group and the current field values."""

import re
import subprocess
import sys

import pytest

from bigramlm.config.run_config import GROUPS, KINDS
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused, run_config


@pytest.fixture
def shown(cli: Cli) -> str:
    ended = cli("--help", run_dir=False)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def section(shown: str, head: str) -> str:
    """Return the lines between a heading and the next one."""
    found = re.search(rf"^{head}.*:\n((?: .*\n|\n(?= ))+)", shown, re.MULTILINE)
    assert found, head
    return found[1]


def test_help_has_the_choices_of_every_group(shown: str) -> None:
    """Check the choices and their order.

    The kinds come first, in the order of the code, followed by the other presets in conf/.
    """
    lines = re.sub(r"\n {14}", " ", section(shown, "Groups")).splitlines()
    found = {group: choices for group, *choices in map(str.split, lines)}
    assert list(found) == list(GROUPS)
    for group, choices in found.items():
        presets = {path.stem for path in (paths.conf_dir() / group).glob("*.yaml")}
        kinds = [kind for kind in KINDS.get(group, {}) if kind in presets]
        assert choices == [*kinds, *sorted(presets - set(kinds))], group


def test_help_fits_in_80_columns(shown: str) -> None:
    """Check the width of all lines except the fields, whose values may be longer."""
    wide = [line for line in shown.splitlines() if len(line) > 80]
    assert set(wide) <= set(section(shown, "Fields").splitlines())
    for line in section(shown, "Groups").splitlines():
        assert re.match(r"  \w[\w ]{10} \S| {14}\S", line), "a column of group names and a column of choices"


def test_help_has_the_fields_and_their_values(shown: str) -> None:
    fields = section(shown, "Fields")
    for field in ("lr: 0.001", "block_size: 8", "max_new_tokens: 300", "steps: 10000"):
        assert field in fields
    assert "schema" not in shown


def test_the_examples_in_help_are_valid(shown: str) -> None:
    examples = re.findall(r"^  python scripts/train\.py(.*?)(?:  .*)?$", section(shown, "Examples"), re.MULTILINE)
    assert len(examples) > 5
    for example in examples:
        overrides = re.findall(r'(?:[^\s"]|"[^"]*")+', example)
        if not any(re.match("resume=|init_from=|-", word) for word in overrides):  # there may be no run
            run_config(*(word.replace('"', "") for word in overrides))
    assert "python scripts/train.py --hydra-help" in shown


def test_help_has_the_launchers_and_sweepers(shown: str) -> None:
    for kind in ("launcher", "sweeper"):
        for path in (paths.conf_dir() / "hydra" / kind).glob("*.yaml"):
            assert re.search(rf"{kind}s: [\w ]*\b{path.stem}\b", shown), path


def test_help_applies_overrides_and_refuses_invalid_ones(cli: Cli) -> None:
    assert "lr: 7.0" in cli("--help", "optim.lr=7", run_dir=False).out
    ended = cli("-h", "optim.lrr=7", run_dir=False)
    assert_refused(ended, "optim.lrr=7", "optim.lr=7")


def test_help_of_a_sweep_shows_the_other_fields(cli: Cli) -> None:
    ended = cli("--help", "-m", "seed=1,2", 'sample.prompt="a","b"', "model=glob(gpt*)", "optim.lr=7", run_dir=False)
    assert (ended.code, ended.err) == (0, "")
    assert "lr: 7.0" in ended.out
    assert_refused(cli("--help", "seed=1,2", run_dir=False), "seed=1,2", "add -m")


def test_help_and_errors_do_not_import_torch() -> None:
    code = """
import sys
from bigramlm.cli.train import main
try:
    main()
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    for argument in ("--help", "optim.lrr=1"):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, check=False)
        assert done.returncode == 0, argument
