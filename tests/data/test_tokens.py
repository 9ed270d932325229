"""Tests of training on token files, and of refusing invalid ones."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigramlm.cli import sample
from bigramlm.data.batches import Batches, Stream, on_device
from bigramlm.data.config import TokensConfig
from bigramlm.data.tokens import SPLITS, About, Counts, TokenFiles, TokenWriter, narrowest_dtype, open_tokens
from bigramlm.tokenizer.config import BPEConfig
from bigramlm.utils import files, paths
from bigramlm.utils.files import sha256, sha256_of
from tests.helpers import Cli, assert_refused, refuses, resumed

TEXT = paths.bundled_text().read_text("utf-8")
SHORT = ("logger=none", "trainer.steps=4", "trainer.eval_every=2", "trainer.eval_batches=2", "sample.max_new_tokens=9")
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make token files of the bundled text, with a BPE vocabulary of 300."""
    folder = tmp_path_factory.mktemp("made")
    cfg, cut = BPEConfig(vocab_size=300), int(0.9 * len(TEXT))
    splits = {"train": TEXT[:cut], "val": TEXT[cut:]}
    tokenizer = cfg.build(characters="", documents=1, train=lambda limit: iter([splits["train"]]))
    dtype = narrowest_dtype(tokenizer.vocab_size)
    about = About(
        name="text",
        sha256=sha256_of(TEXT),
        n_characters=len(TEXT),
        documents=1,
        split=cut,
        tokenizer=asdict(cfg),
        tokenizer_sha256=sha256_of(tokenizer.to_json()),
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(dtype).name,
    )
    with TokenWriter(folder, about, tokenizer.to_json()) as writer:
        ids = {split: tokenizer.encode(text).astype(dtype).tobytes() for split, text in splits.items()}
        writer.write(ids, {split: len(text) for split, text in splits.items()}, pieces=1)
        writer.finish()
    return folder


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Path:
    """Copy the token files, for a test to damage."""
    return shutil.copytree(made, tmp_path / "damaged")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: truncate(folder / "val.bin"), ("val.bin", "truncated")),
        (lambda folder: (folder / "val.bin").open("ab").write(b"more"), ("val.bin", "a different file")),
        (lambda folder: (folder / "train.bin").unlink(), ("train.bin", "missing")),
        (lambda folder: (folder / "manifest.json").write_text("{}"), ("manifest.json", "prepare.py")),
        (lambda folder: (folder / "manifest.json").unlink(), ("manifest.json", "prepare.py")),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ("tokenizer.json", "SHA-256")),
        (lambda folder: (folder / "tokenizer.json").unlink(), ("tokenizer.json", "read")),
    ],
)
def test_damaged_token_files_are_refused(
    damage: Callable[[Path], Any], named: tuple[str, ...], made: Path, damaged: Path
) -> None:
    assert open_tokens(damaged).tokenizer() == open_tokens(made).tokenizer()
    damage(damaged)
    with refuses(damaged, *named):
        open_tokens(damaged).tokenizer()


@pytest.mark.parametrize("name", ["val.bin", "tokenizer.json"])
def test_training_on_damaged_token_files_is_refused(name: str, damaged: Path, cli: Cli) -> None:
    truncate(damaged / name)
    assert_refused(cli(*SHORT, "data=tokens", f"data.path={damaged}"), damaged / name)


def test_token_files_of_another_format_are_refused(damaged: Path) -> None:
    about = json.loads((damaged / "manifest.json").read_text("utf-8"))
    (damaged / "manifest.json").write_text(json.dumps({**about, "format": 99}), "utf-8")
    with refuses(damaged, "99"):
        open_tokens(damaged)


@pytest.mark.parametrize("split", SPLITS)
def test_verify_finds_a_flipped_bit(split: str, damaged: Path) -> None:
    found = open_tokens(damaged)
    found.verify()
    path = damaged / f"{split}.bin"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with refuses(path, "delete"):
        found.verify()


def test_run_on_token_files_needs_no_text(made: Path, cli: Cli, tool: Cli) -> None:
    ended = cli(*SHORT, "data=tokens", f"data.path={made}")
    assert ended.code == 0, ended.err
    config = (ended.folder / "config.yaml").read_text("utf-8")
    assert "vocab_size: 300" in config, "the run uses the tokenizer of the files"
    assert "vocabulary of 300" in (ended.folder / "train.log").read_text("utf-8")
    again = resumed(cli, ended.folder, "trainer.steps=6")
    assert again.code == 0, again.err
    shown = tool(sample.main, f"run={ended.folder}", "max_new_tokens=20", "prompt=Who's 日本?")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("Who's 日本?")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["tokenizer=char"], ("tokenizer=char", "tokenizer=bpe", "vocab_size=300")),
        ([*BPE, "tokenizer.min_frequency=3"], ("tokenizer.min_frequency=3", "tokenizer.min_frequency=2")),
        (["data.train_fraction=0.5"], ("data.train_fraction=0.5", "0.9")),
    ],
)
def test_token_files_of_another_tokenizer_or_split_are_refused(
    overrides: list[str], named: tuple[str, ...], made: Path, cli: Cli
) -> None:
    assert_refused(cli(*SHORT, "data=tokens", f"data.path={made}", *overrides), made, *named)


def test_batches_from_files_match_those_from_memory(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 5000).astype(np.uint16)
    ids.tofile(tmp_path / "train.bin")
    about = About("t", "0", 5000, 1, 5000, {}, "0", 50_257, "uint16")
    found = TokenFiles(tmp_path, about, {"train": Counts(5000, 5000)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = on_device(found.ids("train"), torch.device("cpu"))
    assert mapped.dtype == torch.uint16
    for step in (0, 5, 2000):
        from_file = Batches(Stream(mapped, block_size=7), batch_size=3, seed=1)[step]
        from_memory = Batches(Stream(torch.from_numpy(ids.astype(np.int32)), block_size=7), batch_size=3, seed=1)[step]
        assert all(torch.equal(a, b) for a, b in zip(from_file, from_memory, strict=True))


@pytest.mark.parametrize("names", [("train.bin", "val.bin", "meta.pkl"), ("train.bin",), ("val.bin",)])
def test_token_files_of_another_program_are_refused(names: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\0\1" * 1000)
    refused = cli(*SHORT, "data=tokens", f"data.path={tmp_path}")
    assert_refused(refused, tmp_path, "manifest.json", "nanoGPT", "prepare.py data.path=FILE")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a text", "utf-8")
    with refuses(f"data.path={path} is a file", "prepare.py", "data=text"):
        TokensConfig(path=str(path)).prepare()


def rewrite(folder: Path, **changes: object) -> None:
    """Change values of the manifest, and the hashes to those of the files."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["about"] |= {name: value for name, value in changes.items() if name in manifest["about"]}
    for split in SPLITS:
        manifest["splits"][split]["sha256"] = sha256(folder / f"{split}.bin")
        manifest["splits"][split] |= {name: changes[name] for name in ("tokens", "characters") if name in changes}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        *({"dtype": dtype} for dtype in ("O", "int64", "float32", "<u2", "S1", None, ["uint8"])),
        *({name: value} for name in ("tokens", "n_characters") for value in (-1, 1.5, "1", None, 2**63, True)),
        *({"n_characters": 0}, {"vocab_size": 0}, {"tokenizer": []}, {"sha256": 7}, {"name": {}}),
        *({"split": 0}, {"split": len(TEXT)}, {"characters": 0}),
    ],
    ids=str,
)
def test_values_of_a_manifest_are_checked(changes: dict[str, object], damaged: Path) -> None:
    rewrite(damaged, **changes)
    with refuses(damaged / "manifest.json", *changes):
        open_tokens(damaged)


def test_changed_tokens_are_found_and_intact_ones_are_hashed_once(
    damaged: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (damaged / ".verified.json").unlink()
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", counted)
    command = (*SHORT, "data=tokens", f"data.path={damaged}")
    for _ in range(2):
        assert cli(*command).code == 0
    assert [path for path in hashed if path.parent == damaged] == [damaged / "train.bin", damaged / "val.bin"]
    stat = (damaged / "train.bin").stat()
    with (damaged / "train.bin").open("r+b") as file:
        file.seek(500)
        file.write(bytes(2000))
    os.utime(damaged / "train.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_refused(cli(*command), damaged / "train.bin", "SHA-256", "prepare the text again")


def test_a_copy_is_verified_although_its_original_was(damaged: Path, tmp_path: Path) -> None:
    open_tokens(damaged).verify_once()
    copy = shutil.copytree(damaged, tmp_path / "copy")
    (copy / "val.bin").write_bytes(bytes((copy / "val.bin").stat().st_size))
    os.utime(copy / "val.bin", ns=(0, (damaged / "val.bin").stat().st_mtime_ns))
    with refuses(copy / "val.bin", "SHA-256"):
        open_tokens(copy).verify_once()


def test_ids_outside_of_the_vocabulary_are_refused(damaged: Path, cli: Cli) -> None:
    for value, split in ((300, "val"), (-1, "train")):
        ids = np.fromfile(damaged / f"{split}.bin", dtype=np.int16)
        ids[7] = value
        ids.tofile(damaged / f"{split}.bin")
        rewrite(damaged)
        ended = cli(*SHORT, "data=tokens", f"data.path={damaged}")
        assert_refused(ended, damaged / f"{split}.bin", "vocabulary of 300")
        ids[7] = 1
        ids.tofile(damaged / f"{split}.bin")


def test_a_folder_in_place_of_a_token_file_is_refused(damaged: Path) -> None:
    (damaged / "val.bin").unlink()
    (damaged / "val.bin").mkdir()
    n_tokens = (damaged / "val.bin").stat().st_size // 2
    manifest = json.loads((damaged / "manifest.json").read_text("utf-8"))
    manifest["splits"]["val"]["tokens"] = n_tokens
    (damaged / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with refuses(damaged / "val.bin", "not a regular file"):
        open_tokens(damaged)


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices")
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), None], ids=["pipe", "device", "none"]
)
def test_an_empty_split_must_be_a_file_too(make: Callable[[Path], None] | None, damaged: Path) -> None:
    (damaged / "val.bin").unlink()
    (damaged / "val.bin").touch()
    rewrite(damaged)
    manifest = json.loads((damaged / "manifest.json").read_text("utf-8"))
    manifest["splits"]["val"]["tokens"] = 0
    (damaged / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    open_tokens(damaged).verify()
    (damaged / "val.bin").unlink()
    if make is not None:
        make(damaged / "val.bin")
    with refuses(damaged / "val.bin", "not a regular file", "prepare the text again"):
        open_tokens(damaged)


def test_a_file_of_holes_is_not_read(damaged: Path) -> None:
    os.truncate(damaged / "train.bin", 1 << 40)
    manifest = json.loads((damaged / "manifest.json").read_text("utf-8"))
    manifest["splits"]["train"]["tokens"] = 1 << 39
    (damaged / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with refuses(damaged / "train.bin", "1,099,511,627,776 bytes"):
        open_tokens(damaged)


def test_the_vocabulary_of_the_manifest_is_that_of_the_tokenizer(damaged: Path, cli: Cli) -> None:
    ids = np.fromfile(damaged / "train.bin", dtype=np.int16)
    ids[7] = 300
    ids.tofile(damaged / "train.bin")
    rewrite(damaged, vocab_size=301)
    refused = cli(*SHORT, "data=tokens", f"data.path={damaged}")
    assert_refused(refused, damaged / "manifest.json", "301 tokens", "only 300")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such numbers of users")
def test_what_another_user_has_verified_is_verified_again(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (damaged / "val.bin").write_bytes(bytes((damaged / "val.bin").stat().st_size))
    tokens = open_tokens(damaged)
    tokens.remember()
    tokens.verify_once()
    monkeypatch.setattr(os, "geteuid", lambda: (damaged / ".verified.json").stat().st_uid + 1)
    with refuses(damaged / "val.bin", "SHA-256"):
        tokens.verify_once()


@pytest.mark.parametrize(
    "config", [{}, {"name": "new"}, {"name": ["bpe"]}, {"name": "bpe", "vocab_size": "many"}], ids=str
)
def test_an_unknown_tokenizer_in_a_manifest_is_named_with_the_file(
    config: dict[str, object], damaged: Path, cli: Cli
) -> None:
    rewrite(damaged, tokenizer=config)
    refused = cli(*SHORT, "data=tokens", f"data.path={damaged}")
    assert_refused(refused, damaged / "manifest.json", "tokenizer", "prepare the text again")
