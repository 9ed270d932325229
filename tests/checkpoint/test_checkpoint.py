"""Checkpoints: atomic saves, detection of damage, and no code run from files."""

import json
import logging
import os
import pickle
import pydoc
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from bigramlm.checkpoint.checkpoint import Checkpoint, Progress
from bigramlm.checkpoint.format import write_manifest
from bigramlm.checkpoint.manager import CheckpointManager, Checkpoints
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.model.bigram import Bigram
from tests.helpers import Stub, assert_refused, build, command, fitted, refuses

SMALL = ("trainer.eval_every=2", "trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=9")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with checkpoints of steps 0, 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("run")
    trainer = fitted(folder, *SMALL, "trainer.steps=5")
    assert trainer.checkpoints.steps() == [0, 2, 4, 5]
    return folder


def checkpoint_folder(run: Path) -> Path:
    return run / "checkpoints"


def copy_of(path: Path, to: Path) -> Path:
    """Copy a checkpoint to a path whose name does not contain the step."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(path, to))


def test_the_configured_number_of_checkpoints_is_kept(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.checkpoint_every=5", "trainer.keep_checkpoints=3", "trainer.eval_every=1000")
    kept = {path.name for path in trainer.checkpoints.folder.glob("step_*")}
    assert kept == {"step_20", "step_25", "step_30"} | {trainer.checkpoints.path("best").name}
    assert not list(trainer.checkpoints.folder.glob(".*"))


def test_the_best_checkpoint_is_kept_and_never_replaced_by_a_worse_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 3.0, 1.0, 2.0, 1.0, 1.5, 7.0])  # train and val alternately
    monkeypatch.setattr("bigramlm.trainer.evaluate.mean_loss", lambda *_: next(losses, 5.0))
    trainer = fitted(tmp_path, "trainer.eval_every=1", "trainer.checkpoint_every=1", "trainer.steps=6")
    # The val losses are 3, 2, 1.5, 5, 5 etc.
    assert trainer.progress.best == {"step": 2, "val/loss": 1.5}
    assert trainer.checkpoints.path("best").name == "step_2"
    assert trainer.checkpoints.steps() == [2, 5, 6]
    again = build(tmp_path, "trainer.eval_every=1", "trainer.checkpoint_every=1", "trainer.steps=8")
    again.start(Checkpoint(again.checkpoints.path("last")))
    assert again.progress.best == trainer.progress.best
    again.progress.step = 7
    again.evaluate()
    again.save()
    assert again.checkpoints.path("best").name == "step_2"


def test_a_lost_best_checkpoint_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = fitted(tmp_path, *SMALL, "trainer.steps=5")
    trainer.checkpoints.update_pointers(2, best=2)
    trainer.progress.step, trainer.progress.best = 7, {"step": 2, "val/loss": 1.0}
    trainer.save()
    again = build(tmp_path, *SMALL, "trainer.steps=8")
    again.start(Checkpoint(checkpoint_folder(tmp_path) / "step_7"))
    assert again.progress.best["step"] == 2
    (checkpoint_folder(tmp_path) / "step_2" / "state.json").write_text("{}")
    again.start(Checkpoint(checkpoint_folder(tmp_path) / "step_7"))
    assert again.progress.best == {}
    assert str(Path("step_2") / "state.json") in caplog.text
    again.evaluate()
    assert again.progress.best["step"] == 7


@pytest.mark.parametrize("content", [b"step_\xb0\n", b"", b"a/b", b"step_99"])
def test_a_damaged_best_file_is_refused_but_fails_no_run(tmp_path: Path, content: bytes) -> None:
    trainer = fitted(tmp_path, *SMALL, "trainer.steps=5")
    (checkpoint_folder(tmp_path) / "best").write_bytes(content)
    with refuses(checkpoint_folder(tmp_path)):
        open_checkpoint(str(checkpoint_folder(tmp_path) / "best"))
    trainer.progress.step = 6
    trainer.save()
    assert trainer.checkpoints.path("last").name == "step_6"


def test_a_crash_between_a_save_and_the_pointers_loses_no_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(tmp_path, "trainer.steps=5", "trainer.eval_every=1", "trainer.checkpoint_every=1")
    for name in ("last", "best"):
        (checkpoint_folder(tmp_path) / name).unlink()
    again = build(tmp_path, "trainer.steps=5", "trainer.eval_every=1")
    newest = again.checkpoints.newest()
    assert newest is not None
    again.start(newest)
    assert again.progress.best["step"] == 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    again.evaluate()
    again.save()
    assert again.checkpoints.path("best").name == "step_5"


def test_a_checkpoint_that_cannot_be_removed_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Imitate Windows, where another process may be reading the checkpoint."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith("step_"):
            raise PermissionError(13, "used by another process")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    trainer = fitted(tmp_path, "trainer.checkpoint_every=5", "trainer.keep_checkpoints=1")
    assert trainer.checkpoints.path("last").name == "step_30"
    assert "used by another process" in caplog.text


def test_optimizer_state_is_restored_by_parameter_name(tmp_path: Path) -> None:
    class Reversed(Stub):
        def named_parameters(self, *arguments: Any, **keywords: Any) -> Any:
            return reversed(list(super().named_parameters(*arguments, **keywords)))

    trainer = fitted(tmp_path, "trainer.steps=3", kind=Stub)
    reordered = build(tmp_path / "other", kind=Reversed)
    params = dict(reordered.model.named_parameters())
    reordered.train_step.optimizer = torch.optim.AdamW(list(params.values()))
    Checkpoint(trainer.checkpoints.path("last")).restore(reordered.model, reordered.train_step.optimizer)
    for name, parameter in trainer.model.named_parameters():
        for key, value in trainer.train_step.optimizer.state[parameter].items():
            assert torch.equal(value, reordered.train_step.optimizer.state[params[name]][key]), (name, key)


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    trainer = fitted(tmp_path)
    trainer.progress.step, trainer.progress.best = 5, {"step": 5, "val/loss": 0.0}
    for _ in range(2):
        trainer.save()
        assert trainer.checkpoints.path("last").name == "step_5"
        Checkpoint(trainer.checkpoints.path("last"))


def test_skipped_checkpoints_are_renamed_and_not_removed(run: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(Path(shutil.copytree(run, tmp_path / "run")) / "checkpoints")
    (checkpoints.folder / "step_5" / "state.json").unlink()
    checkpoints.quarantine(after=4)
    assert checkpoints.steps() == [0, 2, 4]
    (damaged,) = checkpoints.folder.glob("damaged_step_5.*")
    assert (damaged / "model.safetensors").exists()


# The functions that a save calls before it renames the folder. files.sync is called once more after the rename.
STAGES = (
    *("pathlib.Path.write_text", "bigramlm.checkpoint.manager.save_model"),
    "bigramlm.checkpoint.manager.save_file",
)
SYNCED = "bigramlm.utils.files.sync"


def failing(function: Callable[..., Any], *, at: int | None) -> mock.Mock:
    """Return a mock of a function that fails at call `at`; None never fails."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        if stand_in.call_count - 1 == at:
            raise OSError(28, "No space left on device")
        return function(*arguments, **keywords)

    stand_in = mock.Mock(side_effect=call)
    return stand_in


def test_a_failed_save_leaves_the_folder_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at every call that writes or syncs.

    If the last sync fails, the new checkpoint is complete and renamed already.
    """
    trainer = fitted(tmp_path, "trainer.keep_checkpoints=99")
    folder = trainer.checkpoints.folder

    def save(stage: str, at: int | None) -> int:
        trainer.progress.step += 1
        function = pydoc.locate(stage)
        assert callable(function)
        stand_in = failing(function, at=at)
        with monkeypatch.context() as patch:
            # Patched with a function, because a Mock would not be bound to its path as a method.
            patch.setattr(stage, lambda *arguments, **keywords: stand_in(*arguments, **keywords))
            trainer.save()
        return stand_in.call_count

    for stage in (*STAGES, SYNCED):
        calls = save(stage, at=None)
        assert calls >= 1, stage
        for at in range(calls):
            saved, last = trainer.checkpoints.steps(), trainer.checkpoints.path("last")
            files_before = sorted(path.name for path in folder.rglob("*"))
            with refuses(f"step_{trainer.progress.step + 1}", "No space"):
                save(stage, at=at)
            if (stage, at) == (SYNCED, calls - 1):
                assert trainer.checkpoints.steps() == [*saved, trainer.progress.step]
                Checkpoint(folder / f"step_{trainer.progress.step}")
            else:
                assert sorted(path.name for path in folder.rglob("*")) == files_before, (stage, at)
            assert trainer.checkpoints.path("last") == last
            Checkpoint(last)
            assert not list(folder.glob(".*"))


def test_any_damage_to_any_file_is_found(run: Path, tmp_path: Path) -> None:
    """Truncate, flip bits, append, empty, remove, and replace by a folder."""
    source, copy = checkpoint_folder(run) / "step_4", tmp_path / "copy"
    copy_of(source, copy)
    Checkpoint(copy)
    rng, attempts = random.Random(0), 0
    for path in sorted(source.iterdir()):
        original, damaged = path.read_bytes(), copy / path.name
        positions = range(len(original)) if len(original) < 2000 else [rng.randrange(len(original)) for _ in range(300)]
        flipped = [
            original[:at] + bytes([original[at] ^ 1 << rng.randrange(8)]) + original[at + 1 :] for at in positions
        ]
        resized = [original[: rng.randrange(len(original))] for _ in range(20)] + [b"", original[:-1], original + b"\n"]
        for content in (*flipped, *resized):
            damaged.write_bytes(content)
            with refuses(copy):
                Checkpoint(copy)
            attempts += 1
        damaged.unlink()
        with refuses(path.name):
            Checkpoint(copy)
        damaged.mkdir()
        with refuses(path.name):
            Checkpoint(copy)
        damaged.rmdir()
        damaged.write_bytes(original)
        Checkpoint(copy)
    assert attempts > 2000


def test_files_of_another_step_are_found(run: Path, tmp_path: Path) -> None:
    for path in sorted((checkpoint_folder(run) / "step_4").iterdir()):
        other = (checkpoint_folder(run) / "step_2" / path.name).read_bytes()
        copy = copy_of(checkpoint_folder(run) / "step_4", tmp_path / "copy")
        (copy / path.name).write_bytes(other)
        if other == path.read_bytes():
            Checkpoint(copy)  # the tokenizer and the config are the same at both steps
            assert path.name in ("tokenizer.json", "config.yaml")
            continue
        # A manifest of another step is valid itself, so the error names the other files.
        with refuses(copy if path.name == "manifest.json" else copy / path.name):
            Checkpoint(copy)
    renamed = copy_of(checkpoint_folder(run) / "step_2", tmp_path / "step_4")
    with refuses(renamed, "step_2"):
        Checkpoint(renamed)
    assert Checkpoint(copy_of(checkpoint_folder(run) / "step_2", tmp_path / "mine")).step == 2, (
        "any other folder name is accepted"
    )


def write_new_manifest(copy: Path) -> None:
    """Write a new manifest for a checkpoint that was changed deliberately."""
    (copy / "manifest.json").unlink()
    write_manifest(copy, 4)


MALFORMED: dict[str, Callable[[Path], object]] = {
    "state.json is a list": lambda path: (path / "state.json").write_text("[]"),
    "state.json without a step": lambda path: (path / "state.json").write_text('{"best": {}, "seconds": 1}'),
    "state.json of another step": lambda path: (path / "state.json").write_text(
        '{"step": 7, "best": {}, "seconds": 1}'
    ),
    "state.json with an infinite step": lambda path: (path / "state.json").write_text(
        '{"step": Infinity, "best": {}, "seconds": 1}'
    ),
    "state.json with a number for best": lambda path: (path / "state.json").write_text(
        '{"step": 4, "best": 3, "seconds": 1}'
    ),
    "state.json with a step of many digits": lambda path: (path / "state.json").write_text(
        f'{{"step": {10**400}, "best": {{}}, "seconds": 1}}'
    ),
    "deeply nested state.json": lambda path: (path / "state.json").write_text("[" * 100_000),
    "tokenizer.json is a number": lambda path: (path / "tokenizer.json").write_text("1"),
    "another tokenizer": lambda path: (path / "tokenizer.json").write_text('{"name": "bpe"}'),
    "numbers for characters": lambda path: (path / "tokenizer.json").write_text('{"name": "char", "chars": [1, 2]}'),
    "fewer characters": lambda path: (path / "tokenizer.json").write_text('{"name": "char", "chars": "ab"}'),
    "config.yaml is a word": lambda path: (path / "config.yaml").write_text("hello"),
    "config.yaml with an unknown model": lambda path: (path / "config.yaml").write_text("model: {name: nosuch}"),
    "config.yaml with a tag": lambda path: (path / "config.yaml").write_text("!!python/object/apply:os.getcwd []"),
    "malformed weights": lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100),
    "other weights": lambda path: save_file({"x": torch.zeros(2)}, path / "model.safetensors"),
    "weights of another shape": lambda path: save_file(
        {"token_embedding_table.weight": torch.zeros(2, 2)}, path / "model.safetensors"
    ),
    **{
        f"weights of the type {dtype}": lambda path, dtype=dtype: save_file(  # type: ignore[misc]
            {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()},
            path / "model.safetensors",
        )
        for dtype in (torch.int8, torch.float8_e4m3fn, torch.bool)
    },
    "an additional file": lambda path: (path / "model.pt").write_bytes(b""),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(run: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = copy_of(checkpoint_folder(run) / "step_4", tmp_path / "copy")
    change(copy)
    write_new_manifest(copy)
    with refuses(copy):
        load_model(open_checkpoint(str(copy)))


def with_state(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the averages in the state of the optimizer."""
    tensors = {name: change(value) if "exp_avg" in name else value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"optimizer": "{}"})


MALFORMED_TRAINING_STATE: dict[str, Callable[[Path], object]] = {
    "no metadata": lambda path: save_file(load_file(path), path),
    "no random state": lambda path: save_file({}, path, metadata={"optimizer": "{}"}),
    "the state of another model": lambda path: save_file(
        {"rng/cpu": torch.get_rng_state(), "optimizer/head/momentum": torch.zeros(1)},
        path,
        metadata={"optimizer": "{}"},
    ),
    "another shape": lambda path: save_file(
        {**load_file(path), "optimizer/token_embedding_table.weight/exp_avg": torch.zeros(3)},
        path,
        metadata={"optimizer": "{}"},
    ),
    **{
        f"state of the type {dtype}": lambda path, dtype=dtype: with_state(path, lambda value: value.to(dtype))  # type: ignore[misc]
        for dtype in (torch.int8, torch.float8_e4m3fn, torch.complex64)
    },
    "a missing average": lambda path: save_file(
        {name: tensor for name, tensor in load_file(path).items() if not name.endswith("exp_avg")},
        path,
        metadata={"optimizer": "{}"},
    ),
    "a text for a number": lambda path: save_file(
        {name: tensor for name, tensor in load_file(path).items() if not name.endswith("/step")},
        path,
        metadata={"optimizer": '{"token_embedding_table.weight": {"step": "x"}}'},
    ),
    "a list for the optimizer": lambda path: save_file(load_file(path), path, metadata={"optimizer": "[1]"}),
    "unknown names": lambda path: save_file({"x": torch.zeros(1)}, path, metadata={"optimizer": "{}"}),
    "a random state of another length": lambda path: save_file(
        {"rng/cpu": torch.zeros(3, dtype=torch.uint8)}, path, metadata={"optimizer": "{}"}
    ),
}


@pytest.mark.parametrize("change", MALFORMED_TRAINING_STATE.values(), ids=MALFORMED_TRAINING_STATE)
def test_malformed_training_state_is_refused(run: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = copy_of(checkpoint_folder(run) / "step_4", tmp_path / "copy")
    change(copy / "training.safetensors")
    write_new_manifest(copy)
    with refuses(copy / "training.safetensors"):
        build(tmp_path / "other").start(Checkpoint(copy))


class CreatesFile:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickles_are_refused_and_run_no_code(run: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bomb = pickle.dumps(CreatesFile(ran))
    pickle.loads(bomb)
    assert ran.exists(), "unpickling would run the code"
    ran.unlink()
    torch.save({"x": CreatesFile(ran)}, tmp_path / "bomb.pt")
    for content in (bomb, (tmp_path / "bomb.pt").read_bytes()):
        for name in [
            path.name for path in (checkpoint_folder(run) / "step_4").iterdir() if path.name != "manifest.json"
        ]:
            copy = copy_of(checkpoint_folder(run) / "step_4", tmp_path / "copy")
            (copy / name).write_bytes(content)
            write_new_manifest(copy)
            with refuses(copy / name):
                load_model(open_checkpoint(str(copy)))
                build(tmp_path / "other").start(Checkpoint(copy))
        (copy / "manifest.json").write_bytes(content)
        with refuses(copy, "manifest.json"):
            Checkpoint(copy)
    with refuses(tmp_path / "bomb.pt"):
        open_checkpoint(str(tmp_path / "bomb.pt"))
    assert not ran.exists()


def test_damaged_checkpoints_are_skipped_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run")) / "checkpoints"
    (folder / "step_5" / "model.safetensors").write_bytes(b"")
    (folder / "step_4" / "manifest.json").unlink()
    newest = Checkpoints(folder).newest()
    assert newest is not None
    assert newest.step == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "step_5/model.safetensors" in warnings[0].replace(os.sep, "/")
    assert "step_4: " in warnings[1]
    assert "manifest.json" in warnings[1]
    for step in (0, 2):
        (folder / f"step_{step}" / "state.json").write_text("")
    with refuses(folder, 4):
        Checkpoints(folder).newest()
    assert Checkpoints(tmp_path / "none").newest() is None


def test_complete_temporary_folders_are_restored_after_a_crash(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run")) / "checkpoints"
    random_part = "0123456789abcdef" * 2
    # A crash between the two renames when a step is saved again.
    (folder / "step_4").rename(folder / f".step_4.{random_part}")
    (folder / "step_5").rename(folder / f".step_5.{random_part}")
    (folder / f".step_5.{random_part}" / "state.json").unlink()  # a crash during a save or a removal
    shutil.copytree(folder / "step_2", folder / f".step_2.{random_part}")
    for name in ("last", "best", "step_2.kept"):
        (folder / f".{name}.{random_part}").write_text("step_")
    Checkpoints(folder).clean_up()
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last", "step_0", "step_2", "step_4"]
    Checkpoint(folder / "step_4")


def test_tied_weights_are_tied_after_loading(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=3", kind=Stub)
    fresh = Stub(vocab_size=11, block_size=8)
    Checkpoint(trainer.checkpoints.path("last")).load_weights(fresh)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
    assert fresh.head.weight is fresh.token.weight


def test_weights_that_do_not_fit_are_named(run: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_folder(run) / "step_4")
    with refuses(checkpoint.path, "token_embedding_table.weight", "(11, 11)", "(5, 5)"):
        checkpoint.load_weights(Bigram(vocab_size=5, block_size=8))
    with refuses(checkpoint.path, "token.weight", "position.weight"):
        checkpoint.load_weights(Stub(vocab_size=11, block_size=8))


def limit_file_size(limit: int) -> None:
    """Limit the size of every file to `limit` bytes from the save of step 20 on."""
    import resource

    save = CheckpointManager.save

    def limited_save(checkpoints: CheckpointManager, progress: Progress, *rest: Any) -> None:
        if progress.step == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        save(checkpoints, progress, *rest)

    mock.patch.object(CheckpointManager, "save", limited_save).start()


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands in for a full disk; Windows has none")
@pytest.mark.parametrize("limit", [2_500, 20_000])
def test_a_full_disk_during_a_save_keeps_the_checkpoint_before(tmp_path: Path, limit: int) -> None:
    """Limit the size of files instead of filling a disk.

    The weights and the log exceed the lower limit, the training state exceeds the higher one.
    """
    run = tmp_path / "run"
    frequent = ("trainer.eval_every=1", "trainer.eval_batches=1", "trainer.keep_checkpoints=99", "trainer.steps=50")
    arguments = (f"hydra.run.dir={run}", "data=bundled", "logger=none", *frequent)
    assert_refused(command(*arguments, setup=partial(limit_file_size, limit)), "step_20")
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.steps() == [*range(20)]
    assert checkpoints.path("last").name == "step_19"
    Checkpoint(checkpoints.path("last"))
    assert not [path for path in checkpoints.folder.iterdir() if path.name.startswith(".")]
    assert json.loads((run / "summary.json").read_text("utf-8"))["status"] == "failed"
