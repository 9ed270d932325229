"""Commands on folders that a stranger has made: run, sweep and token folders.

Each folder is a copy of a good one, changed by rules that a seed chooses. No command may hang, end in a traceback,
obey a control character, touch a file outside the folder, or use the network.
"""

import json
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigramlm.checkpoint.format import MANIFEST, manifest_entry, manifest_text
from bigramlm.cli import checkpoint, look, prepare, runs, sample, train
from bigramlm.runs import find
from tests.helpers import SHORT, Ended, Started, command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the folders contain links and pipes")

# The number of folders; `make soak` sets it to 500.
N_FOLDERS = int(os.environ.get("HOSTILE_FOLDERS", "40"))

DEEP = "[" * 200_000
# The end of a journal of SQLite that names a further file, which SQLite would delete.
JOURNAL_MARK = bytes.fromhex("d9d505f920a163d7")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 10**400, 1e308, float("inf"), float("nan"), "", "text", "\x1b[31mred\x1b[0m\x07"),
    *(
        "a\nb\rc",
        "\u202eabc",
        "=cmd|' /C calc'!A0",
        "<img src=x onerror=alert(1)>",
        "../../x",
        "/etc/passwd",
        "x" * 70_000,
    ),
    *([], {}, [1, "a", None], {"a": {"b": 1}}, "${oc.env:HOME}", "9999-99-99T99:99:99", "1" * 5000),
)


def replaced(value: Any, rng: random.Random) -> Any:
    """Return a JSON value in which one part, at random, has another value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        if rng.random() < 0.1:
            return {**value, str(rng.choice(VALUES)): value[name]}
        return {**value, name: replaced(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], replaced(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24


def change_json(path: Path, rng: random.Random) -> None:
    if is_small(path):
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            return
        path.write_text(json.dumps(replaced(content, rng)), "utf-8")


def change_yaml(path: Path, rng: random.Random) -> None:
    """Replace a value in a file of YAML, which is valid YAML before."""
    try:
        lines = path.read_text("utf-8").split("\n") if is_small(path) else []
    except ValueError:
        return
    at = rng.randrange(len(lines)) if lines else 0
    if lines and ":" in lines[at]:
        value = rng.choice([*VALUES, "&a [1]", "*a", "!!python/object/apply:os.system [touch hacked]"])
        text = value if isinstance(value, str) and value[:1] in "&*!" else json.dumps(value)
        lines[at] = f"{lines[at].split(':')[0]}: {text}"
        path.write_text("\n".join(lines), "utf-8")


def replace_file(path: Path, rng: random.Random) -> None:
    """Put something else in the place of a file or folder."""
    outside = root_of(path).parent / "outside"
    if path.is_symlink() or path.is_file() or rng.random() < 0.3:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        kind = rng.randrange(9)
        if kind == 0:
            path.symlink_to(outside / "file.txt")
        elif kind == 1:
            path.symlink_to(outside, target_is_directory=True)
        elif kind == 2:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", path.name, "/nowhere"]))
        elif kind == 3:
            os.mkfifo(path)
        elif kind == 4:
            path.mkdir()
        elif kind == 5:
            with path.open("wb") as file:
                file.truncate(1 << 40)
        elif kind == 6:
            path.write_text(rng.choice(["", DEEP, "{" * 1000, "\ufeff{}", "null", "\0" * 100, '{"a":' * 100_000]))
        elif kind == 7:
            path.write_bytes(rng.randbytes(2000))
        else:
            path.write_bytes("{}".encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])))


def change_record(path: Path, rng: random.Random) -> None:
    """Change a line of a metrics.jsonl file, or repeat it at the end."""
    try:
        lines = path.read_text("utf-8").splitlines() if is_small(path) else []
        at = rng.randrange(len(lines)) if lines else 0
        changed = json.dumps(replaced(json.loads(lines[at]), rng)) if lines else ""
    except ValueError:
        return
    lines[at : at + 1] = [changed] if rng.random() < 0.7 else [lines[at], "x" * (1 << 21), changed]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def root_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "folder")


def add_entry(path: Path, rng: random.Random) -> None:
    """Add an entry that a good folder lacks, at its top."""
    root = root_of(path)
    outside, kind = root.parent / "outside", rng.randrange(8)
    name = (
        *("events.out.tfevents.1.host.1.0", ".lock", "train.log", "study.db-journal"),
        *("root", rng.choice(["007", str(10**20), str(2**31), "9" * 200, "3"]), "4", "results.csv"),
    )[kind]
    target = root / name
    if kind in (1, 2, 7):
        target.unlink(missing_ok=True)
    if os.path.lexists(target):
        return
    if kind == 0:
        os.mkfifo(target) if rng.random() < 0.5 else target.symlink_to(outside / "file.txt")
    elif kind == 2:
        os.link(outside / "file.txt", target)
    elif kind == 3:
        mine = str(outside / "file.txt").encode() + b"\0"
        target.write_bytes(mine + len(mine).to_bytes(4, "big") + bytes(4) + JOURNAL_MARK)
        (root / "study.db").touch()
    elif kind == 4:
        target.symlink_to("/")
    elif kind == 5:
        found = root / "1" if (root / "1").is_dir() else root / "checkpoints"
        shutil.copytree(found, target, symlinks=True) if found.is_dir() else target.mkdir()
    else:
        target.symlink_to(root.parent / "good" if kind == 6 else outside / "file.txt")


def add_names(path: Path, rng: random.Random) -> None:
    name = rng.choice(
        ["..x", "step_", "step_99999999999999999999", ".step_3." + "0" * 32, "\x1b[31mstep", "a\nb", "-rf"]
    )
    target = path.parent / name
    if not os.path.lexists(target):
        target.mkdir() if rng.random() < 0.5 else target.write_text("x")


def flip_bytes(path: Path, rng: random.Random) -> None:
    if is_small(path) and path.stat().st_size:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 20, 2000])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(bytes(content))


RULES: tuple[Callable[[Path, random.Random], None], ...] = (
    *(change_json, change_json, change_json, change_yaml, change_yaml, replace_file, replace_file, add_names),
    *(flip_bytes, change_record, add_entry, add_entry),
)
# The suffix of the files that a rule changes.
SUFFIXES = {"change_json": ".json", "change_yaml": ".yaml", "change_record": ".jsonl"}


def seal(step: Path) -> None:
    """Write a manifest that fits the files of a checkpoint, as a stranger can."""
    if not all(is_small(path) for path in step.iterdir()):
        return
    try:
        number = json.loads((step / "state.json").read_text("utf-8"))["step"]
        entries = {path.name: manifest_entry(path) for path in sorted(step.iterdir()) if path.name != MANIFEST}
        (step / MANIFEST).write_text(manifest_text(number, entries), "utf-8")
    except Exception:  # the folder is damaged in another way
        return


def hostile(good: Path, to: Path, rng: random.Random) -> Path:
    """Copy a folder and change it by rules that the generator chooses."""
    folder = to / "folder"
    shutil.copytree(good, folder, symlinks=True)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rule = rng.choice(RULES)
        found = sorted(path for path in folder.rglob("*") if not path.is_dir() or rule is replace_file)
        if suffix := SUFFIXES.get(rule.__name__):
            found = [path for path in found if path.suffix == suffix]
        if not found:
            continue
        path = rng.choice(found)
        rule(path, rng)
        if path.parent.name.startswith("step_") and path.name != MANIFEST and rng.random() < 0.8:
            seal(path.parent)
    return folder


def no_network(*_: object, **__: object) -> None:
    print("NETWORK", file=sys.stderr, flush=True)
    raise OSError(101, "Network is unreachable")


def without_network() -> None:
    socket.socket.connect = no_network  # type: ignore[method-assign]
    socket.getaddrinfo = no_network  # type: ignore[assignment]
    find.outputs = runs.outputs = Path.cwd


KINDS = ("run", "gpt", "lora", "ngram", "sweep", "tokens")

Call = tuple[Callable[[], object], tuple[str, ...]]


def commands_on(kind: str, folder: Path) -> list[Call]:
    """List the commands that are tried on a folder of a kind."""
    name, short = str(folder), ("trainer.steps=6", "logger=none", "sample.max_new_tokens=5")
    new = f"hydra.run.dir={folder.parent / 'new'}"
    if kind == "tokens":
        return [
            (train.main, ("data=tokens", f"data.path={name}", *short, "tokenizer=byte", "data.block_size=8", new)),
            (train.main, ("data=tokens", f"data.path={name}", *short, "data.block_size=8", new)),
            (prepare.main, ("data=bundled", "tokenizer=byte", f"output={name}")),
        ]
    listing: list[Call] = [
        (runs.main, ("list",)),
        (sample.main, ("run=latest", "max_new_tokens=5")),
        (runs.main, ("report", name, "--output", str(folder.parent / "report.html"))),
    ]
    if kind == "sweep":
        short = (*short[1:], "trainer.steps=5")
        return [
            *listing,
            (runs.main, ("results", name)),
            (train.main, ("-m", *SHORT, "seed=1,2,3", f"sweep={name}")),
            (train.main, (f"resume={folder / '0'}", "trainer.steps=8")),
            (checkpoint.main, ("verify", name)),
            (checkpoint.main, ("verify", str(folder / "1"))),
        ]
    return [
        *listing,
        (runs.main, ("diff", name, str(folder.parent / "good"))),
        (sample.main, (f"run={name}", "max_new_tokens=5")),
        (look.main, (f"run={name}",)),
        (look.main, (f"run={folder.parent / 'good'}", f"compare={name}", f"output={folder.parent / 'look.html'}")),
        (checkpoint.main, ("verify", name)),
        (checkpoint.main, ("inspect", name)),
        (checkpoint.main, ("export", name, str(folder.parent / "exported"))),
        (checkpoint.main, ("merge", name, str(folder.parent / "merged"))),
        (checkpoint.main, ("strip", name, "--output", str(folder.parent / "stripped"))),
        (train.main, (f"resume={name}", *short[:1])),
        (train.main, (f"init_from={name}", "data=bundled", *short[1:], "trainer.steps=1", new)),
        (checkpoint.main, ("strip", name)),
    ]


def snapshot(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder" for path in folder.rglob("*")
    }


def check(ended: Ended, call: Call) -> None:
    """Check the end and the output of a command."""
    about = f"{call[1]}\n{ended.out[-2000:]}\n{ended.err[-4000:]}"
    assert ended.code in (0, 1, 2), about
    assert "Traceback" not in ended.out + ended.err, about
    assert "NETWORK" not in ended.err, about
    obeyed = re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", ended.err)
    assert not obeyed, about
    if call[0] not in (sample.main, train.main):  # a sample in a pipe is raw
        assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", ended.out), about


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make runs of several kinds, a sweep and a folder of tokens."""
    to = tmp_path_factory.mktemp("good")
    made = {kind: to / kind for kind in KINDS}
    gpt = ("model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=8", "data.block_size=8", "tokenizer=byte")
    for ended in (
        command(*SHORT, f"hydra.run.dir={made['run']}"),
        command(*SHORT, *gpt, f"hydra.run.dir={made['gpt']}"),
        command(*SHORT, f"init_from={made['gpt']}", "adapter=lora", f"hydra.run.dir={made['lora']}"),
        command(*SHORT, "model=ngram", f"hydra.run.dir={made['ngram']}"),
        command("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={made['sweep']}"),
        command("data=bundled", "tokenizer=byte", f"output={made['tokens']}", main=prepare.main),
    ):
        assert ended.code == 0, ended.err
    return made


def try_folder(good: dict[str, Path], to: Path, seed: int, n_commands: int) -> None:
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    shutil.copytree(good["run"], to / "good")
    (to / "outside").mkdir()
    (to / "outside" / "file.txt").write_text("mine")
    shutil.copytree(good["run"] / "checkpoints", to / "outside" / "checkpoints")
    folder = hostile(good[kind], to, rng)
    outside = snapshot(to / "outside"), snapshot(to / "good")
    calls = commands_on(kind, folder)
    for call in rng.sample(calls, min(n_commands, len(calls))):
        check(Started(call[0], *call[1], setup=without_network, cwd=to).end(within=60), call)
        assert (snapshot(to / "outside"), snapshot(to / "good")) == outside, call[1]


@pytest.mark.parametrize("seed", range(4))
def test_no_command_fails_at_a_hostile_folder(good: dict[str, Path], tmp_path: Path, seed: int) -> None:
    try_folder(good, tmp_path, seed, n_commands=9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + N_FOLDERS))
def test_no_command_fails_at_one_of_many_hostile_folders(good: dict[str, Path], tmp_path: Path, seed: int) -> None:
    try_folder(good, tmp_path, seed, n_commands=3)
