"""Tests of extensions, in every command and process that meets them."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import bigramlm
from bigramlm.cli import checkpoint, prepare, sample, verify_resume
from bigramlm.cli import train as train_command
from bigramlm.utils import paths
from tests.helpers import SHORT, Ended, assert_refused, command, summary

# Extensions change the process that imports them, so each test imports them in another one.

MODEL = '''
from dataclasses import dataclass
from bigramlm.api import register
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import ModelConfig

@register("model", "own")
@dataclass
class OwnConfig(ModelConfig):
    """A bigram of one's own."""

    name: str = "own"
    scale: float = 0.5

    def build(self, *, vocab_size, block_size):
        model = Bigram(vocab_size=vocab_size, block_size=block_size)
        model.token_embedding_table.weight.data *= self.scale
        return model
'''

OTHERS = """
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from bigramlm.api import register
from bigramlm.data.config import DataConfig
from bigramlm.optim.config import OptimConfig
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.config import CharConfig

@register("tokenizer", "own")
@dataclass
class OwnTokenizer(CharConfig):
    name: str = "own"

@register("data", "own")
@dataclass
class OwnText(DataConfig):
    name: str = "own"

    def file(self):
        return Path(__file__).with_name("own.txt")

@register("optim", "own")
@dataclass
class OwnOptimizer(OptimConfig):
    name: str = "own"

    def build(self, model, *, compiled):
        return torch.optim.RMSprop(model.parameters(), lr=self.lr)

@register("logger", "own")
class OwnLogger:
    def __init__(self, cfg, context):
        self.path = context.folder / "own.log"

    def log(self, step, metrics):
        with self.path.open("a") as file:
            file.write(f"{step}\\n")

    def text(self, step, name, text):
        pass

    def close(self, *, completed):
        pass
"""


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    path = tmp_path / "my_models.py"
    path.write_text(MODEL, "utf-8")
    return path


def saved_config(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def train(folder: Path, *overrides: str) -> Ended:
    ended = command(*SHORT, *overrides, f"hydra.run.dir={folder}")
    assert ended.code == 0, ended.err
    return ended


def test_a_model_trains_resumes_and_samples(extension: Path, tmp_path: Path) -> None:
    run, override = tmp_path / "run", f"extensions={extension}"
    (tmp_path / "elsewhere").mkdir()
    train(run, override, "model=own", "model.scale=0.25")
    saved = saved_config(run / "config.yaml")
    assert saved["model"] == {"name": "own", "scale": 0.25}
    (recorded,) = saved["extensions"]
    assert (recorded["name"], len(recorded["sha256"])) == (str(extension), 64)
    # Without the extension nothing is imported, and the line to paste is given.
    for script, words in {"train": [f"resume={run}", "trainer.steps=9"], "sample": [f"run={run}"]}.items():
        path = str(paths.home() / "scripts" / f"{script}.py")
        done = subprocess.run([sys.executable, path, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.endswith(f"python {path} {' '.join(words)} {override}\n"), done.stderr
    ended = command(f"resume={run}", "trainer.steps=9", override)
    assert ended.code == 0, ended.err
    assert summary(run)["step"] == 9
    assert "changed since" not in ended.err
    assert "changed: extensions" not in (run / "train.log").read_text("utf-8")
    ended = command(f"run={run}", "max_new_tokens=5", override, main=sample.main)
    assert ended.code == 0, ended.err
    extension.write_text(MODEL + "\n# changed\n", "utf-8")
    ended = command(f"resume={run}", "trainer.steps=12", override)
    assert ended.code == 0, ended.err
    assert f"{override}: the file has changed since the run last started" in ended.err
    moved = extension.rename(tmp_path / "elsewhere" / extension.name)
    ended = command(f"resume={run}", "trainer.steps=15", f"extensions={moved}")
    assert ended.code == 0, ended.err
    assert "changed since" not in ended.err
    moved.write_text(MODEL, "utf-8")
    ended = command(f"resume={run}", "trainer.steps=18", f"extensions={moved}")
    assert "changed since" in ended.err


def test_build_may_return_any_module(tmp_path: Path) -> None:
    path, run = tmp_path / "my_models.py", tmp_path / "run"
    content = MODEL.replace("model = Bigram(vocab_size=vocab_size, block_size=block_size)", "from torch import nn")
    content = re.sub(r"        model\.token.*\n", "        model = nn.Embedding(vocab_size, vocab_size)\n", content)
    path.write_text(content, "utf-8")
    train(run, f"extensions={path}", "model=own")
    ended = command(f"run={run}", "max_new_tokens=5", f"extensions={path}", main=sample.main)
    assert ended.code == 0, ended.err


def test_every_group_can_be_extended(extension: Path, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS, "utf-8")
    (tmp_path / "own.txt").write_text("To be, or not to be, that is the question.\n" * 40, "utf-8")
    run = tmp_path / "run"
    options = [option for option in SHORT if not option.startswith(("data=", "logger="))]
    ended = command(
        *(*options, f"extensions=[{extension},{tmp_path / 'others.py'}]", "model=own", "tokenizer=own", "data=own"),
        *("optim=own", "logger=own", f"hydra.run.dir={run}"),
    )
    assert ended.code == 0, ended.err
    saved = saved_config(run / "config.yaml")
    assert [saved[group]["name"] for group in ("model", "tokenizer", "data", "optim")] == ["own"] * 4
    assert [Path(entry["name"]).name for entry in saved["extensions"]] == ["my_models.py", "others.py"]
    assert (run / "own.log").read_text("utf-8").split() == ["0", "2", "4", "5"]


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_gives_its_jobs_what_was_typed(launcher: str, extension: Path, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS, "utf-8")
    sweep = tmp_path / "sweep"
    options = [option for option in SHORT if not option.startswith("logger=")]
    words = [*options, f"extensions={extension},{tmp_path / 'others.py'}", "model=own", "logger=own"]
    words += ["model.scale=0.1,0.2", f"hydra.sweep.dir={sweep}", f"hydra/launcher={launcher}"]
    ended = command("-m", *words)
    assert ended.code == 0, ended.err
    assert [summary(sweep / job)["status"] for job in "01"] == ["completed"] * 2
    assert (sweep / "1" / "own.log").exists()
    before = (sweep / "0" / "summary.json").read_bytes()
    extension.write_text(MODEL + "\n# changed\n", "utf-8")
    again = command("-m", *words)
    assert again.code == 0, again.err
    assert (sweep / "0" / "summary.json").read_bytes() == before, "the jobs are known"


def test_presets_name_extensions_and_help_shows_them(extension: Path, tmp_path: Path) -> None:
    presets = tmp_path / "presets"
    (presets / "experiment").mkdir(parents=True)
    recipe = {"defaults": [{"override /model": "own"}], "extensions": str(extension), "model": {"scale": 0.3}}
    (presets / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(recipe)), "utf-8"
    )
    run = tmp_path / "run"
    ended = command("--config-dir", str(presets), *SHORT, "experiment=mine", f"hydra.run.dir={run}")
    assert ended.code == 0, ended.err
    assert saved_config(run / "config.yaml")["model"] == {"name": "own", "scale": 0.3}
    shown = command("--config-dir", str(presets), "--help", "experiment=mine").out
    assert " mine" in shown
    assert "scale: 0.3" in shown
    ended = command(*SHORT, f"hydra.searchpath=[file://{presets}]", "experiment=mine", f"hydra.run.dir={run}2")
    assert ended.code == 0, ended.err
    shown = command("--help", f"extensions={extension}", "model=own").out
    assert re.search(r"^  model .*(?:\n {14}.*)* own$", shown, re.MULTILINE), "the last choice of its group"
    assert "scale: 0.5" in shown


def test_a_package_is_an_extension(tmp_path: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("from my_package import network\n", "utf-8")
    (package / "network.py").write_text(MODEL, "utf-8")
    train(tmp_path / "run", f"extensions={package}", "model=own")
    recorded = saved_config(tmp_path / "run" / "config.yaml")["extensions"]
    (package / "network.py").write_text(MODEL + "\n", "utf-8")
    train(tmp_path / "run2", f"extensions={package}", "model=own")
    changed = saved_config(tmp_path / "run2" / "config.yaml")["extensions"]
    assert recorded != changed, "the hash covers the files of the package"


def test_the_other_commands_take_extensions(extension: Path, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS, "utf-8")
    (tmp_path / "own.txt").write_text("To be, or not to be, that is the question.\n" * 40, "utf-8")
    run, both = tmp_path / "run", f"{extension},{tmp_path / 'others.py'}"
    train(run, f"extensions={both}", "model=own", "tokenizer=own")
    ended = command("inspect", str(run), "--extensions", both, main=checkpoint.main)
    assert (ended.code, "name=own scale=0.5" in ended.out) == (0, True), ended.err
    assert_refused(command("inspect", str(run), main=checkpoint.main), "model=own", "my_models.py", "bigramlm.load")
    words = ["extensions=" + both, "data=own", "tokenizer=own"]
    ended = command(*words, f"output={tmp_path / 'tokens'}", main=prepare.main)
    assert (ended.code, "Tokenizer: own" in ended.out) == (0, True), ended.err
    ended = command(f"extensions={extension}", "model=own", "data=bundled", main=verify_resume.main)
    assert (ended.code, ended.out[:9]) == (0, "bit-equal"), ended.err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ("does not exist",)),
        ("1 / 0\n", ("ZeroDivisionError", "division by zero")),
        ("import nothing_of_this_name\n", ("ModuleNotFoundError", "nothing_of_this_name")),
        ("def broken(:\n", ("SyntaxError",)),
        ("raise SystemExit(3)\n", ("SystemExit",)),
        (MODEL.replace('"own"', '"gpt"'), ("model=gpt", "exists", "GPTConfig")),
        (MODEL.replace("ModelConfig)", "object)"), ("model=own", "dataclass", "ModelConfig")),
        (MODEL.replace('name: str = "own"', 'name: str = "other"'), ("model=own", "name")),
        (MODEL.replace('name: str = "own"', "pass"), ("model=own", "name: str = 'own'")),
        (MODEL.replace("@dataclass\n", ""), ("model=own", "@dataclass below @register")),
        (MODEL.replace("scale: float = 0.5", "scale: object = object()"), ("model=own", "type", "object")),
        (MODEL.replace("def build", "def make"), ("model=own", "build(self, *, vocab_size, block_size)")),
        (MODEL.replace("*, vocab_size, ", ""), ("model=own", "build(self, *, vocab_size, block_size)")),
        (MODEL.replace("return model", "return 5"), ("model=own", "torch.nn.Module", "int")),
        (MODEL.replace('register("model"', 'register("models"'), ("models", "model, adapter")),
    ],
)
def test_bad_extensions_are_refused(content: str | None, named: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "my_models.py"
    if content is not None:
        path.write_text(content, "utf-8")
    run = tmp_path / "run"
    choice = "model=own" if "return 5" in str(content) else "model=bigram"
    assert_refused(command(*SHORT, f"extensions={path}", choice, f"hydra.run.dir={run}"), *named)
    assert choice == "model=own" or not run.exists()


def test_a_file_must_have_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("json.py", "my-models.py", "my_models.txt"):
        (tmp_path / name).write_text(MODEL, "utf-8")
        assert_refused(command(*SHORT, f"extensions={tmp_path / name}"), name)


@pytest.mark.parametrize(("page", "n_commands"), [("python.md", 4), ("adding-a-model.md", 3)])
def test_the_commands_in_the_docs_run(page: str, n_commands: int, tmp_path: Path) -> None:
    text = (paths.home() / "docs" / page).read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(# my_models\.py\n.*?)```", text, re.DOTALL)
    (tmp_path / "my_models.py").write_text(snippet, "utf-8")
    lines = re.findall(r"^python scripts/(?:train|sample)\.py .*extensions=.*$", text, re.MULTILINE)
    assert len(lines) == n_commands
    run = tmp_path / "run"
    for line in lines:
        script, *words = shlex.split(line)[1:]
        if script.endswith("sample.py"):
            words.append(f"run={run}")
        elif "-m" in words:
            words += [*SHORT, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        elif "resume=latest" in words:
            words = [word.replace("latest", str(run)).replace("20000", "9") for word in words]
        else:
            words += [*SHORT, f"hydra.run.dir={run}"]
        ended = command(*words, main=sample.main if script.endswith("sample.py") else train_command.main, cwd=tmp_path)
        assert ended.code == 0, (words, ended.err)
    assert summary(run)["step"] == (9 if "resume=latest" in text else 5)


def in_python(extension: Path, run: Path) -> None:
    trained = bigramlm.train(*SHORT, f"extensions={extension}", "model=own", f"hydra.run.dir={run}")
    extension.write_text(MODEL.replace("0.5", "0.75"), "utf-8")
    again = bigramlm.train(*SHORT, f"extensions={extension}", "model=own", f"hydra.run.dir={run}2")
    loaded = bigramlm.load(run, extensions=str(extension))
    scales = [getattr(run.config.model, "scale") for run in (trained, again, loaded)]  # noqa: B009 - of one kind
    print(json.dumps([*scales, loaded.sample(max_new_tokens=3)[:1] != ""]))


def not_imported(run: Path) -> None:
    try:
        _ = bigramlm.load(run).model
    except bigramlm.UserError as error:
        print(error)


def test_python_imports_a_changed_file_again(extension: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command(main=functools.partial(in_python, extension, run))
    assert json.loads(ended.out) == [0.5, 0.75, 0.5, True], ended.err
    ended = command(main=functools.partial(not_imported, run))
    assert "model=own comes from" in ended.out
    assert f'"extensions={extension}" to the overrides, or extensions="{extension}"' in ended.out
    assert shlex.quote(str(extension)) in ended.out


@pytest.mark.parametrize("value", ["{0}", "[{0}]", "[{{name: a, sha256: b}}, {0}]"])
def test_a_saved_config_imports_nothing(value: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w')")
    ended = command(*SHORT, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text("utf-8").replace("extensions: []", f"extensions: {value.format(tmp_path / 'theirs.py')}")
    config.write_text(text, "utf-8")
    assert_refused(command(f"resume={tmp_path / 'run'}", "trainer.steps=9"), config, "extensions")
    assert not ran.exists()
