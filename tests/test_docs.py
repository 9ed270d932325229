"""The docs say what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from bigramlm import cli, paths, prepare, sample
from bigramlm.config_reference import reference
from tests.helpers import gpt2_folder, run_config

DOCS = sorted([*(paths.home() / "docs").rglob("*.md"), *paths.home().glob("*.md"), *paths.home().glob("*/README.md")])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2_folder(tmp_path_factory.mktemp("gpt2"))


def weights(overrides: list[str], gpt2: Path) -> list[str]:
    """The overrides, with weights that there are in the place of those that they start from."""
    others = [override for override in overrides if not override.startswith(("init_from=", "base="))]
    starts = len(others) < len(overrides) or any("=finetune" in override for override in overrides)
    return [*others, f"init_from={gpt2}"] if starts else others


def test_the_config_reference_is_current() -> None:
    written = (paths.home() / "docs" / "config.md").read_text("utf-8")
    assert written == reference(), "run `make docs`"


def test_every_field_is_documented() -> None:
    for row in re.findall(r"^\| `.*", reference(), re.MULTILINE):
        assert row.split("|")[-2].strip(), row


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_links_lead_somewhere(path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_commands_in_the_docs_have_their_overrides_right(path, gpt2: Path) -> None:
    """Every `python scripts/train.py ...` in the docs composes."""

    for line in re.findall(r"python scripts/train\.py([^`\n#|>]*)", path.read_text("utf-8")):
        arguments = [a for a in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line) if "=" in a]
        if "-m" in line.split() or any(word.isupper() for word in re.findall(r"\w+", line)) or "-sc" in line:
            continue
        arguments = [a for a in arguments if not a.startswith(("resume=", "hydra."))]  # there may be no run yet
        run_config(*weights([a.replace('"', "").replace("'", "") for a in arguments], gpt2))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_sweeps_in_the_docs_have_their_overrides_right(path, gpt2: Path) -> None:
    """Every `python scripts/train.py -m ...` composes, with the first of what is swept."""

    text = path.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"python scripts/train\.py(?= [^`\n#]*-m )([^`\n#]*)", text):
        typed = [word for word in shlex.split(line) if "=" in word and not word.startswith("sweep=")]
        first = []
        for override in OverridesParser.create().parse_overrides(typed):
            value = override.value()
            if isinstance(value, IntervalSweep):
                first.append(f"{override.get_key_element()}={value.start}")
            elif override.is_sweep_override():
                first.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
            else:
                first.append(str(override.input_line))
        run_config(*weights(first, gpt2))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_commands_that_sample_have_their_fields_right(path) -> None:
    sample.register()
    for line in re.findall(r"python scripts/sample\.py([^`\n#|>]*)", path.read_text("utf-8")):
        arguments = [a for a in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line) if "=" in a]
        if not any(word in line for word in ("FIELD", "FOLDER")):
            cli.composed("sample", [a.replace('"', "") for a in arguments], sample.FREE_TEXT)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_commands_that_prepare_have_their_fields_right(path) -> None:
    prepare.register()
    for line in re.findall(r"python scripts/prepare\.py([^`\n#|>]*)", path.read_text("utf-8")):
        arguments = [a for a in shlex.split(line) if "=" in a]
        if not any(word in line for word in ("FIELD", "FOLDER")):
            cli.composed("prepare", arguments, prepare.FREE_TEXT)


SNIPPETS = re.findall(
    r"```python\n(.*?)```\n```text\n(.*?)```", (paths.home() / "docs" / "notes.md").read_text("utf-8"), re.DOTALL
)


@pytest.mark.skipif(
    not (paths.home() / "sources" / "shakespeare.txt").exists(),
    reason="the notes' snippets read sources/shakespeare.txt, which `python scripts/train.py` downloads",
)
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_of_the_notes_print_what_stands_below_them(number: int) -> None:
    code, printed = SNIPPETS[number]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.home(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.stdout == printed, done.stderr
