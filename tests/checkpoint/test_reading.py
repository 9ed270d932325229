"""Tests of checkpoints that their run deletes or replaces while they are read."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import checkpoint as checkpoint_tool
from bigramlm.cli import sample
from bigramlm.engine.load import load_model, open_checkpoint
from tests.helpers import SHORT, Cli, Ended, assert_refused, command, refuses, started, wait_for

RUN = (*SHORT, "trainer.steps=2", "trainer.eval_every=1", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9")
GPT = ("model=nanogpt", "model.n_layer=1", "model.n_head=1", "model.n_embd=8", "model.bias=true")


@pytest.fixture(scope="module", params=["bigram", "gpt"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with checkpoints of steps 0, 1 and 2."""
    return train(tmp_path_factory, *(GPT if request.param == "gpt" else ()))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory, *GPT)


def train(tmp_path_factory: pytest.TempPathFactory, *overrides: str) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command(*RUN, *overrides, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


class Rotation:
    """A copy of a run that has saved step 1 and will save step 2 while it is read.

    It keeps its newest checkpoint only, as with trainer.keep_checkpoints=1.
    """

    def __init__(self, run: Path, to: Path) -> None:
        self.run = Path(shutil.copytree(run, to))
        self.checkpoints = self.run / "checkpoints"
        self.new = (self.checkpoints / "step_2").rename(to.with_name("aside"))
        shutil.rmtree(self.checkpoints / "step_0")
        for name in ("last", "best"):
            (self.checkpoints / name).write_text("step_1\n")

    def delete(self) -> None:
        """Save step 2 and delete step 1."""
        if self.new.exists():
            self.new.rename(self.checkpoints / "step_2")
            for name in ("last", "best"):
                (self.checkpoints / name).write_text("step_2\n")
            hidden = (self.checkpoints / "step_1").rename(self.checkpoints / f".step_1.{'a' * 32}")
            shutil.rmtree(hidden)

    def delete_files(self) -> None:
        """Save step 2 and delete the files of step 1, but not yet its folder."""
        if self.new.exists():
            self.new.rename(self.checkpoints / "step_2")
            for path in (self.checkpoints / "step_1").iterdir():
                path.unlink()

    def replace(self) -> None:
        """Save step 1 again, with equal files."""
        if self.new.exists():
            shutil.rmtree(self.new)
            old = (self.checkpoints / "step_1").rename(self.new.with_name("old"))
            shutil.copytree(old, self.checkpoints / "step_1")
            shutil.rmtree(old)


@pytest.fixture
def rotation(trained: Path, tmp_path: Path) -> Rotation:
    return Rotation(trained, tmp_path / "run")


def before_call(name: str, action: Callable[[], None]) -> Any:
    """Return a patch that calls an action before each call of a function."""
    module, _, attribute = name.rpartition(".")
    original = getattr(__import__(module, fromlist=[attribute]), attribute)

    def call(*arguments: Any, **keywords: Any) -> Any:
        action()
        return original(*arguments, **keywords)

    return mock.patch(name, call)


# The functions before whose calls the checkpoint is deleted.
MOMENTS = {
    "its manifest": "bigramlm.checkpoint.checkpoint.read_manifest",
    "its hashes": "bigramlm.checkpoint.checkpoint.manifest_entry",
    "its config": "bigramlm.engine.load.load",
    "its weights": "bigramlm.checkpoint.checkpoint.load_file",
}
MOMENT = pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)


@MOMENT
@pytest.mark.parametrize(("how", "step"), [("delete", 2), ("delete_files", 2), ("replace", 1)])
@pytest.mark.parametrize("which", ["last", "best"])
def test_the_newest_checkpoint_is_read(
    rotation: Rotation, trained: Path, moment: str, how: str, step: int, which: str
) -> None:
    if how == "delete_files" and which == "best":
        pytest.skip("the file `best` names the deleted step")
    with before_call(moment, getattr(rotation, how)):
        checkpoint = open_checkpoint(str(rotation.run), which)
        model, tokenizer, _ = load_model(checkpoint)
    assert (checkpoint.step, checkpoint.path.name) == (step, f"step_{step}")
    expected, _, _ = load_model(Checkpoint(trained / "checkpoints" / f"step_{step}"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert tokenizer.vocab_size == model.vocab_size


@MOMENT
def test_a_pointer_is_followed(rotation: Rotation, moment: str) -> None:
    with before_call(moment, rotation.delete):
        checkpoint = open_checkpoint(str(rotation.checkpoints / "best"))
        load_model(checkpoint)
    assert checkpoint.step == 2


@MOMENT
def test_a_fixed_step_that_is_gone_is_refused(rotation: Rotation, moment: str) -> None:
    fixed = rotation.checkpoints / "step_1"
    with before_call(moment, rotation.delete), refuses(fixed) as refused:
        load_model(open_checkpoint(str(fixed)))
    assert "not saved by" not in str(refused.value)
    with refuses("checkpoint=1", "last, best, 2"):
        open_checkpoint(str(rotation.run), "1")


def test_a_run_that_keeps_deleting_is_refused_in_the_end(rotation: Rotation) -> None:
    def touch() -> None:
        path = rotation.checkpoints / "step_1"
        (path / "model.safetensors").unlink(missing_ok=True)
        (path / "model.safetensors").write_bytes(b"")

    with before_call(MOMENTS["its hashes"], touch), refuses(rotation.checkpoints):
        open_checkpoint(str(rotation.run))


def run_tool(tool: Cli, rotation: Rotation, moment: str, main: Callable[[], None], *arguments: str) -> Ended:
    with before_call(moment, rotation.delete):
        return tool(main, *(argument.format(run=rotation.run) for argument in arguments))


@MOMENT
def test_sample_inspect_and_strip_use_the_newest(rotation: Rotation, tool: Cli, tmp_path: Path, moment: str) -> None:
    shutil.copytree(rotation.run, tmp_path / "copy")
    shutil.copytree(rotation.new, tmp_path / "new")
    for name, main, arguments in (
        ("sample", sample.main, ("run={run}", "max_new_tokens=2")),
        ("inspect", checkpoint_tool.main, ("inspect", "{run}")),
        ("strip", checkpoint_tool.main, ("strip", "{run}", "--output", str(tmp_path / "stripped"))),
    ):
        ended = run_tool(tool, rotation, moment, main, *arguments)
        assert ended.code == 0, ended.err
        if not rotation.new.exists():  # this command has met the moment
            assert str(Path("step_2")) in (ended.err if name == "sample" else ended.out)
            shutil.rmtree(rotation.run)
            shutil.copytree(tmp_path / "copy", rotation.run)
            shutil.copytree(tmp_path / "new", rotation.new)
    Checkpoint(tmp_path / "stripped")


def test_a_copy_is_of_one_checkpoint(rotation: Rotation, tool: Cli, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    ended = run_tool(tool, rotation, "shutil.copyfile", checkpoint_tool.main, "strip", "{run}", "--output", out)
    assert ended.code == 0, ended.err
    assert Checkpoint(tmp_path / "out").step == 2


def test_a_deleted_checkpoint_is_not_damaged(rotation: Rotation, tool: Cli) -> None:
    ended = run_tool(tool, rotation, MOMENTS["its hashes"], checkpoint_tool.main, "verify", "{run}")
    assert ended.code == 0, ended.out
    assert "damaged" not in ended.out
    assert ended.out.startswith("deleted ")
    assert tool(checkpoint_tool.main, "verify", str(rotation.run)).out.startswith("intact ")


@pytest.mark.parametrize("action", ["export", "init_from", "adapter"])
@MOMENT
def test_export_and_init_from_use_the_newest(
    gpt: Path, cli: Cli, tool: Cli, tmp_path: Path, moment: str, action: str
) -> None:
    rotation = Rotation(gpt, tmp_path / "source")
    if action == "export":
        ended = run_tool(tool, rotation, moment, checkpoint_tool.main, "export", "{run}", str(tmp_path / "out"))
        assert ended.code == 0, ended.err
        assert str(Path("step_2")) in ended.out
        return
    adapter = ["adapter=lora", "adapter.r=1"] if action == "adapter" else []
    with before_call(moment, rotation.delete):
        ended = cli(*SHORT, "trainer.steps=0", f"init_from={rotation.run}", *adapter)
    assert ended.code == 0, ended.err
    start = Checkpoint(ended.folder / "checkpoints" / "step_0")
    model, _, _ = load_model(start)
    expected, _, _ = load_model(Checkpoint(rotation.checkpoints / "step_2"))
    assert torch.equal(model.state_dict()["wte.weight"], expected.state_dict()["wte.weight"])


def test_the_base_of_an_adapter_is_kept_before_its_run_deletes_it(gpt: Path, cli: Cli, tmp_path: Path) -> None:
    rotation = Rotation(gpt, tmp_path / "source")
    with before_call("bigramlm.engine.build.keep_base", rotation.delete):
        ended = cli(*SHORT, "trainer.steps=0", f"init_from={rotation.run}", "adapter=lora", "adapter.r=1")
    assert ended.code == 0, ended.err
    base = json.loads((ended.folder / "checkpoints" / "step_0" / "base.json").read_text("utf-8"))
    kept = Checkpoint(rotation.checkpoints / "step_2")
    assert (base["place"], base["sha256"]) == (str(kept.path), kept.sha256)
    assert [path.name for path in rotation.checkpoints.glob("*.kept")] == ["step_2.kept"]
    load_model(Checkpoint(ended.folder / "checkpoints" / "step_0"))


def test_a_running_run_can_be_read_at_any_moment(tmp_path: Path, tool: Cli) -> None:
    run = tmp_path / "run"
    rotating = ("trainer.checkpoint_every=1", "trainer.keep_checkpoints=1", "trainer.eval_every=100000")
    endless = ("data=bundled", "logger=none", "device.threads=1", "trainer.steps=100000000")
    with ExitStack() as stack:
        process = stack.enter_context(started(*endless, *rotating, f"hydra.run.dir={run}"))
        wait_for((run / "checkpoints" / "last").exists, of=process)
        for _ in range(5):
            ended = tool(sample.main, f"run={run}", "max_new_tokens=1", "device.threads=1")
            assert ended.code == 0, ended.err
            ended = tool(checkpoint_tool.main, "inspect", str(run))
            assert ended.code == 0, ended.err
        gone = tool(sample.main, f"run={run}", "checkpoint=1")
        assert_refused(gone, "checkpoint=1")
