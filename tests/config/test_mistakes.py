"""Tests of the messages for mistakes in overrides and presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import PRESETS, SHORT, Cli, assert_refused, command, summary

# Arguments, and the way out that the message must contain.
ARGUMENTS = {
    # Flags of other programs
    "--lr=0.1": "did you mean optim.lr=0.1?",
    "--optim.lr 0.1": "write optim.lr=0.1",
    "--learning_rate=0.1": "did you mean optim.lr=0.1?",
    "--learning-rate 0.1": "did you mean optim.lr=0.1?",
    "max_iters=9": "did you mean trainer.steps=9?",
    "--dtype=bf16": "did you mean device.precision=bf16?",
    "--fp16": "did you mean device.precision=fp16?",
    "--gpu 0": "did you mean device.name=cuda?",
    "--epochs=3": "did you mean trainer.steps=N?",
    "epochs=3": "did you mean trainer.steps=N?",
    "--config=quick": "did you mean experiment=quick?",
    "--config conf/experiment/quick.yaml": "did you mean experiment=quick?",
    "--multirun=true": "write --multirun, or omit it",
    "-m=true": "write -m, or omit it",
    "--n_layers 2": "did you mean model.n_layer=2?",
    "--optim.lr=0.1": "write optim.lr=0.1",
    "-lr 0.1": "did you mean optim.lr=0.1?",
    "-lr=0.1": "did you mean optim.lr=0.1?",
    "-model=gpt": "write model=gpt",
    "-param=1": "FIELD=VALUE",
    "--batch-size 32": "did you mean data.batch_size=32?",
    "--steps": "did you mean trainer.steps=VALUE?",
    "--help --lr=1": "did you mean optim.lr=1?",
    "-cfg job": "--hydra-help",
    "--conf x": "--hydra-help",
    "-m --run": "only one",
    "-m --cfg job": "only one",
    "--resolve": "--cfg",
    "--config-dir nowhere": "--config-dir=nowhere",
    "--config-name nowhere": "nowhere",
    # Fields and groups
    "lr=0.1": "did you mean optim.lr=0.1?",
    "optim.lrr=1": "did you mean optim.lr=1?",
    "+optim.lrr=1": "did you mean optim.lr=1?",
    "++optim.lrr=1": "did you mean optim.lr=1?",
    "~optim.lrr": "did you mean optim.lr?",
    "~optim.lr": "omit ~optim.lr",
    "trainer.lr=1": "did you mean optim.lr=1?",
    "optim.LR=1": "did you mean optim.lr=1?",
    "n_layers=2": "did you mean model.n_layer=2?",
    "modle=gpt": "did you mean model=gpt?",
    "+modle=gpt": "did you mean model=gpt?",
    "+model=gpt": "omit the +: model=gpt",
    "++model=gpt": "omit the ++: model=gpt",
    "+experiment=quick": "omit the +: experiment=quick",
    "+optim.lr=1": "omit the +: optim.lr=1",
    "optim.lr.x=1": "did you mean optim.lr=1?",
    "model.n_layer=2": "gpt2",
    "data.path=x.txt": "only with data=text",
    "qqq=1": "--help",
    "—lr=1": "did you mean optim.lr=1?",
    "é=1": "--help",
    "=1": "a field is missing",
    "hydra.run.dirr=x": "did you mean hydra.run.dir=x?",
    "hydra.launcher.n_jobs=2": "hydra/launcher=NAME",
    "hydra/launchr=joblib": "did you mean hydra/launcher=joblib?",
    "-m optim.lrr=1,2": "did you mean optim.lr=1?",
    "-m +optim.lrr=1,2": "did you mean optim.lr=1,2?",
    "--cfg job optim.lrr=1": "did you mean optim.lr=1?",
    "--info config optim.lrr=1": "did you mean optim.lr=1?",
    "~init_from": "write init_from=null",
    "optim/lr=1": "did you mean optim.lr=1?",
    "hydra=foo": "hydra.run.dir=FOLDER",
    "model@optim=gpt": "did you mean model=gpt?",
    "\N{EN DASH}\N{EN DASH}optim.lr=0.1": "did you mean optim.lr=0.1?",
    "—lr": "did you mean optim.lr=VALUE?",
    "\N{EN DASH}m": "write flags with hyphens",
    "sample=5": "sample.max_new_tokens=VALUE",
    "\N{LEFT DOUBLE QUOTATION MARK}optim.lr=0.1\N{RIGHT DOUBLE QUOTATION MARK}": "did you mean optim.lr=0.1?",
    # Presets
    "device=CPU": "did you mean device=cpu?",
    "experiment=conf/experiment/quick.yaml": "did you mean experiment=quick?",
    "experiment=/experiment/quick": "did you mean experiment=quick?",
    "experiment=../quick": "did you mean experiment=quick?",
    "data=./my.txt": "write data=text data.path=./my.txt",
    "data=my.txt": "write data=text data.path=my.txt",
    "tokenizer=here/tokenizer.json": "write tokenizer=gpt2 tokenizer.path=here/tokenizer.json",
    f"experiment={'x' * 300}": "too long",
    f"-m experiment=quick,{'x' * 300}": "too long",
    "model=gtp": "did you mean model=gpt?",
    "model=": "bigram",
    "model=3": "bigram",
    "model=null": "omit model=",
    "logger=false": "none, tensorboard",
    "experiment=quik": "did you mean experiment=quick?",
    "experiment=null": "omit experiment=",
    "hydra/launcher=jobli": "did you mean hydra/launcher=joblib?",
    "-m data=bundled model=gpt,gtp": "did you mean model=gpt?",
    # Arguments without an equals sign, and spaces
    "config/x.py": "FIELD=VALUE",
    "train_shakespeare_char.py": "recipes are conf/experiment/NAME.yaml",
    "conf/experiment/quick.yaml": "did you mean experiment=quick?",
    "hello": "FIELD=VALUE",
    "optim.lr": "write optim.lr=VALUE",
    "optim.lr 0.1": "write optim.lr=0.1",
    "experiment quick": "write experiment=quick",
    "optim.lr = 0.1": "write optim.lr=0.1",
    "optim.lr =0.1": "write optim.lr=0.1",
    "optim.lr= 0.1": "write optim.lr=0.1",
    "optim.lr:0.1": "write optim.lr=0.1",
    "optim.lr: 0.1": "write optim.lr=0.1",
    "lr 0.1": "did you mean optim.lr=0.1?",
    "-m optim.lr=1e-3, 1e-2": "write optim.lr=1e-3,1e-2",
    "-m optim.lr=1e-3 ,1e-2, 1e-1": "write optim.lr=1e-3,1e-2,1e-1",
    "sample.prompt=Once upon a time": "'sample.prompt=Once upon a time'",
    # Values
    "optim.lr=abc": "a number",
    "optim.lr=": "a number",
    "-m data=bundled optim.lr=1,abc": "optim.lr=abc: must be a number",
    "trainer.steps=1.5": "a whole number",
    "trainer.steps=1e3": "such as 1000",
    "trainer.steps=null": "omit trainer.steps=",
    "preflight=maybe": "true or false",
    "optim.betas=0.9": "optim.betas=[0.9]",
    "optim.betas=[a,b]": "a must be a number",
    "optim.lr=1e-3,1e-2": "add -m",
    "optim.lr=0,1": "write optim.lr=0.1 for one number",
    "trainer.steps=1,000": "write trainer.steps=1000 for one number",
    "optim.lr=interval(0,1)": "add -m hydra/sweeper=optuna",
    "seed=choice()": "gives no value",
    "optim.betas=0.9,0.99": "[0.9,0.99]",
    "optim.betas=0.9;0.99": "must be a list",
    "logger.project=a,b": "'logger.project=\"a,b\"' for one text",
    "optim.lr=0.1!": "must be a number",
    "optim.lr=1e\N{MINUS SIGN}3": "write optim.lr=1e-3",
    "optim.lr=\N{LEFT DOUBLE QUOTATION MARK}0.1\N{RIGHT DOUBLE QUOTATION MARK}": "write optim.lr=0.1",
    "model=gpt,bigram": "add -m",
    "seed=range(0,3)": "add -m",
    "-m hydra.run.dir=a,b": "cannot be swept",
    "hydra.mode=foo": "RUN, MULTIRUN",
    "optim.lr=(": "quotes",
    "optim.lr='a": "quotes",
    "optim.lr=${x}": "optim.lr: Interpolation key 'x'",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_mistakes_give_one_line_with_the_right_spelling(arguments: str, cli: Cli, tmp_path: Path) -> None:
    words = arguments.split()
    ended = cli(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert_refused(ended, ARGUMENTS[arguments])
    assert ended.err.count("\n") == 1
    assert not re.search(r"use \+|HYDRA_FULL_ERROR|hydra\.cc", ended.err)
    assert not list(tmp_path.iterdir()), "nothing was started"


@pytest.mark.parametrize("argument", ["optim.lr = 0.1", "optim.lr 0.1", "optim.lr : 0.1", " optim.lr=0.1"])
def test_spaces_within_an_argument_are_found(argument: str, cli: Cli) -> None:
    assert_refused(cli(argument), argument, "write optim.lr=0.1")


@pytest.mark.parametrize("argument", ["optim.lr=\N{NO-BREAK SPACE}0.1", "optim.lr=0.1\N{NO-BREAK SPACE}"])
def test_spaces_that_look_like_others_are_named(argument: str, cli: Cli) -> None:
    assert_refused(cli(argument), "\\xa0", "write optim.lr=0.1")


@pytest.mark.parametrize("argument", ["seed=1,2", "optim.lr=1,2,3"])
def test_numbers_are_never_proposed_as_lists_or_texts(argument: str, cli: Cli) -> None:
    ended = cli(argument)
    assert_refused(ended, argument, "add -m")
    assert not re.search("list|quotes|text", ended.err)


def test_an_empty_argument_is_found(cli: Cli) -> None:
    assert_refused(cli("seed=1", "", run_dir=False), "empty", "seed=1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["++optim.lr=0.1"],
        ["experiment=quick"],
        ["optim={lr: 0.1}"],
        ["model=[bigram]"],
        ["optim.betas=[0.9,0.9]"],
        ["optim.betas.0=0.9"],
        ["optim.lr=${optim.weight_decay}", "optim.weight_decay=0.1"],
        ["sample.prompt=-x --y=z"],
        ["+hydra.job.env_set.BIGRAMLM_TEST=1"],
        ["-r"],
        ["--"],
    ],
)
def test_valid_arguments_are_accepted(arguments: list[str], cli: Cli) -> None:
    ended = cli(*arguments, *SHORT, "trainer.steps=1", "preflight=false", "tokenizer=byte")
    assert ended.code == 0, ended.err


# Recipes with mistakes, and what the message must contain.
RECIPES = {
    "open: [": ["mine.yaml, line 3", "YAML"],
    "a: 1\n\tb: 2": ["mine.yaml, line 3", "YAML"],
    'a: "b': ["mine.yaml, line 3", "YAML"],
    "optim: {lr: 1, lr: 2}": ["mine.yaml, line 2", "duplicate key lr"],
    "optim: {lrr: 1}": ["experiment/mine.yaml", "optim.lrr", "did you mean optim.lr?"],
    "optim: {lr: abc}": ["experiment/mine.yaml", "optim.lr", "abc", "number"],
    "optim: {lr: null}": ["experiment/mine.yaml", "optim.lr", "cannot be null"],
    "optim: 3": ["experiment/mine.yaml", "optim=3", "optim.name=VALUE"],
    "sample: 3": ["experiment/mine.yaml", "sample=3", "sample.max_new_tokens=VALUE"],
    "optim: {lr: '${nosuch.x}'}": ["optim.lr", "nosuch.x"],
    "optim: {lr: '${oc.env:NO_SUCH}'}": ["optim.lr", "NO_SUCH"],
    "optim: {lr: '${nosuch'}": ["optim.lr", "nosuch"],
    "defaults: [override /model: gtp]": ["model=gtp", "did you mean model=gpt?", *PRESETS],
    "defaults: [override /modle: gpt]": ["experiment/mine.yaml", "modle", "did you mean model?"],
    "defaults: [quik]": ["experiment/mine.yaml", "experiment=quik", "did you mean experiment=quick?", "ladder, mine"],
    "defaults: [{optim: sgd}]": ["experiment/mine.yaml", "- override /optim: sgd"],
}


@pytest.mark.parametrize("content", RECIPES)
def test_a_damaged_recipe_gives_one_line_with_the_file(content: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n", "utf-8")
    ended = cli("--config-dir", str(tmp_path), "experiment=mine")
    assert_refused(ended, *RECIPES[content])
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"seed: 3\n", b"- a\n", b"# \xe9\nseed: 3\n", b"\x00"])
def test_a_file_that_is_no_recipe_is_refused(content: bytes, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    ended = cli(f"--config-dir={tmp_path}", "experiment=mine")
    assert_refused(ended, "experiment/mine.yaml")
    assert ended.err.count("\n") == 1


def test_a_group_of_the_users_can_be_added(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text("# @package _global_\nseed: 5\n", "utf-8")
    folder = tmp_path / "run"
    ended = command("-cd", str(tmp_path), "+mine=a", *SHORT, f"hydra.run.dir={folder}")
    assert ended.code == 0, ended.err
    assert "seed: 5" in (folder / "config.yaml").read_text("utf-8")
    assert summary(folder)["status"] == "completed"
