"""Tests of the docs: commands, links, snippets and the config reference."""

import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from bigramlm.cli import common as cli
from bigramlm.cli import prepare, sample
from bigramlm.dev.config_reference import reference
from bigramlm.utils import paths
from tests.helpers import run_config

# Files of the repository. Folders that tools create, such as .pytest_cache, are excluded.
DOCS = sorted(path for wanted in ("docs/**/*.md", "*.md", "[!.]*/README.md") for path in paths.home().glob(wanted))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create those files of a GPT-2 that composing a config requires."""
    folder = tmp_path_factory.mktemp("gpt2")
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 300, "n_positions": 32}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **shape}))
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return folder


@functools.cache
def composes(*overrides: str) -> None:
    """Compose a run's config, only once for each command in the docs."""
    run_config(*overrides)


@functools.cache
def composes_as(command: str, free_text: tuple[str, ...], *overrides: str) -> None:
    """Compose another command's config, also only once."""
    cli.compose_config(command, overrides, free_text)


@pytest.fixture(scope="module")
def reference_text() -> str:
    """Return the config reference."""
    return reference()


def replace_weights(overrides: list[str], gpt2: Path) -> list[str]:
    """Return the overrides, with an existing folder as the initial weights, if any."""
    others = [override for override in overrides if not override.startswith(("init_from=", "base="))]
    has_weights = len(others) < len(overrides) or any("=finetune" in override for override in overrides)
    return [*others, f"init_from={gpt2}"] if has_weights else others


def test_comments_behind_commands_can_be_pasted_into_zsh() -> None:
    """Check that zsh, which passes comments on as arguments, finds nothing to expand."""
    for path in DOCS:
        for line in re.findall(r"^(?:python |bigramlm|make |cd |git |pip ).*", path.read_text("utf-8"), re.MULTILINE):
            command, mark, comment = line.partition(" # ")
            if mark:
                assert command.split()[0] not in ("make", "cd", "git", "pip"), f"{path}: {line}: takes no comment"
                assert not re.search(r"[?*\[\](){};'\"|&<>~`$=!]", comment), f"{path}: {line}"


def test_the_config_reference_is_current(reference_text: str) -> None:
    written = (paths.home() / "docs" / "config.md").read_text("utf-8")
    assert written == reference_text, "run `make docs`"


def test_every_field_is_documented(reference_text: str) -> None:
    for row in re.findall(r"^\| `.*", reference_text, re.MULTILINE):
        assert row.split("|")[-2].strip(), row


def test_the_debugger_starts_programs_of_the_repository() -> None:
    editor = paths.home() / ".vscode"
    json.loads((editor / "settings.json").read_text("utf-8"))
    configurations = json.loads((editor / "launch.json").read_text("utf-8"))["configurations"]
    programs = [entry["program"] for entry in configurations if "program" in entry]
    assert programs
    for program in programs:
        assert Path(program.replace("${workspaceFolder}", str(paths.home()))).is_file(), program
    for entry in configurations:
        if entry.get("program", "").endswith("train.py"):
            composes(*entry["args"])
    assert all("program" in entry or importlib.util.find_spec(entry["module"]) for entry in configurations)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_links_have_targets(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_train_commands_compose(path: Path, gpt2: Path) -> None:
    """Compose every `python scripts/train.py ...` in the docs."""
    text = path.read_text("utf-8").replace("/dev/stdin", "my.txt")  # nothing is piped to the tests
    for line in re.findall(r"python scripts/train\.py([^`\n#|>]*)", text):
        arguments = [a for a in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line) if "=" in a]
        if "extensions=" in line:  # tests/config/test_extensions.py runs these
            continue
        if "-m" in line.split() or any(word.isupper() for word in re.findall(r"\w+", line)) or "-sc" in line:
            continue
        arguments = [a for a in arguments if not a.startswith(("resume=", "hydra."))]  # the run may not exist
        composes(*replace_weights([a.replace('"', "").replace("'", "") for a in arguments], gpt2))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_sweep_commands_compose(path: Path, gpt2: Path) -> None:
    """Compose the first job of every `python scripts/train.py -m ...` in the docs."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"python scripts/train\.py(?= [^`\n#]*-m )([^`\n#]*)", text):
        if "extensions=" in line:
            continue
        overrides = [word for word in shlex.split(line) if "=" in word and not word.startswith("sweep=")]
        first = []
        for override in OverridesParser.create().parse_overrides(overrides):
            value = override.value()
            if isinstance(value, IntervalSweep):
                first.append(f"{override.get_key_element()}={value.start}")
            elif override.is_sweep_override():
                first.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
            else:
                first.append(str(override.input_line))
        composes(*replace_weights(first, gpt2))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_sample_commands_compose(path: Path) -> None:
    sample.register()
    for line in re.findall(r"python scripts/sample\.py([^`\n#|>]*)", path.read_text("utf-8")):
        arguments = [a for a in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line) if "=" in a]
        if not any(word in line for word in ("FIELD", "FOLDER")):
            composes_as("sample", sample.FREE_TEXT, *(a.replace('"', "") for a in arguments))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(paths.home())))
def test_prepare_commands_compose(path: Path) -> None:
    prepare.register()
    for line in re.findall(r"python scripts/prepare\.py([^`\n#|>]*)", path.read_text("utf-8")):
        arguments = [a for a in shlex.split(line) if "=" in a]
        if not any(word in line for word in ("FIELD", "FOLDER")):
            composes_as("prepare", prepare.FREE_TEXT, *arguments)


def test_code_with_a_file_name_is_in_the_file() -> None:
    """Check all code in the docs whose first line is a comment with a file's path."""
    text = "\n".join(path.read_text("utf-8") for path in DOCS)
    found = re.findall(r"```\w*\n# (\w+/\S+)\n(.*?)```", text, re.DOTALL)
    assert found
    for name, code in found:
        assert code in (paths.home() / name).read_text("utf-8"), f"the docs quote other code of {name}:\n{code}"


SNIPPETS = re.findall(
    r"```python\n(.*?)```\n```text\n(.*?)```", (paths.home() / "docs" / "notes.md").read_text("utf-8"), re.DOTALL
)


@pytest.mark.skipif(
    not (paths.home() / "sources" / "shakespeare.txt").exists(),
    reason="the notes' snippets read sources/shakespeare.txt, which `python scripts/train.py` downloads",
)
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_in_the_notes_print_the_quoted_output(number: int) -> None:
    code, expected = SNIPPETS[number]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.home(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.stdout == expected, done.stderr
