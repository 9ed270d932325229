"""A simulation of power cuts: traces of commands, and what a cut can leave.

A command is traced at the level of system calls, so that the writes of safetensors, SQLite and TensorBoard are in the
trace; tests.power_calls does it without strace. A state consists of what the disk must have after some of these calls,
and of a random part of the rest:

- Data that was written after the last fsync of a file may be lost, all of it or its end, or be zeros, or be written in
  another order.
- Entries of a folder (creations, renames, removals) after the last fsync of the folder may be lost, the last ones
  first. Folders lose them independently of each other and of the data: a renamed file may be empty.

Writes through a memory mapping are not traced; no file of a run is written that way.
"""

from __future__ import annotations

import codecs
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    *("open", "openat", "creat", "write", "writev", "pwrite64", "lseek", "ftruncate", "truncate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat"),
    *("sendfile", "copy_file_range", "fallocate", "symlink", "symlinkat"),
)
_LINE = re.compile(
    r"(?P<time>[\d.]+) (?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?:<.*>)?(?: .*)?$", re.DOTALL
)
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FILE = re.compile(r"(?P<fd>\d+|AT_FDCWD)<(?P<path>[^>]*)>")


@dataclass(frozen=True)
class Call:
    """A system call that succeeded: its name, its paths, and its data if it writes."""

    name: str
    path: str
    to: str = ""
    """The new path of a rename or a link."""
    fd: int = -1
    data: bytes = b""
    offset: int | None = None
    """The position of a write or the new length of a file; None for the current position."""
    flags: str = ""


def can_trace() -> bool:
    """Return True if strace is installed, and this process may trace its children."""
    try:
        return (
            subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def trace(folder: Path, code: str, *arguments: str, output: Path) -> list[Call]:
    """Run Python code with arguments, and return its calls that concern a folder.

    output: a new folder for the files of strace.
    """
    output.mkdir()
    strace = ["strace", "-ff", "--seccomp-bpf", "-y", "-qq", "-ttt", "-s", str(1 << 26), "-o", str(output / "calls")]
    command = [*strace, "-e", f"trace={','.join(_CALLS)}", sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    lines = [line for path in sorted(output.iterdir()) for line in path.read_text("latin-1").splitlines()]
    lines.sort(key=lambda line: line.partition(" ")[0])
    return [call for line in lines if (call := _parsed(line, str(folder))) is not None]


def _parsed(line: str, folder: str) -> Call | None:
    found = _LINE.match(line)
    if found is None or int(found["result"]) < 0 or folder not in line:
        return None
    name, arguments, result = found["name"], found["arguments"], int(found["result"])
    opened = _FILE.match(arguments)
    texts = [codecs.escape_decode(text.encode("latin-1"))[0] for text in _TEXT.findall(arguments)]
    numbers = re.findall(r", (-?\d+)", arguments)
    call = None
    if name in ("write", "writev", "pwrite64", "lseek", "ftruncate", "fsync", "fdatasync"):
        assert opened is not None, line
        offset = {"pwrite64": numbers[-1:], "ftruncate": numbers[-1:], "lseek": [str(result)]}.get(name)
        data = b"".join(texts)[:result] if "write" in name else b""
        call = Call(name, opened["path"], "", int(opened["fd"]), data, int(offset[0]) if offset else None)
    else:
        paths = [text.decode() for text in texts]
        assert name not in ("sendfile", "copy_file_range", "fallocate", "symlink", "truncate"), line
        if opened is not None:  # relative to an open folder
            paths = [os.path.join(opened["path"], path) for path in paths]  # noqa: PTH118
        flags = arguments.partition('", ')[2]
        if name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", flags):
            return None
        path, to = (*paths, "")[:2]
        call = Call(name.removesuffix("2").removesuffix("at"), path, to, result, flags=flags)
        if "O_TMPFILE" in flags:
            return None
    return call if f"{call.path}/".startswith(f"{folder}/") and "(deleted)" not in line else None


@dataclass
class _File:
    synced: bytes = b""
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    """The writes after the last fsync: position and data, or the length of a truncation and None."""

    def content(self, writes: Sequence[tuple[int, bytes | None]] | None = None) -> bytes:
        content = bytearray(self.synced)
        for position, data in self.unsynced if writes is None else writes:
            if len(content) < position:
                content += bytes(position - len(content))
            if data is None:
                del content[position:]
            else:
                content[position : position + len(data)] = data
        return bytes(content)

    def after_cut(self, moments: random.Random) -> bytes:
        """Return a content that the disk may have after a power cut."""
        kept = list(self.unsynced)
        kind = moments.choice(["all", "nothing", "start", "torn", "zeros", "some"])
        if kind in ("nothing", "zeros"):
            kept = []
        elif kind in ("start", "torn"):
            kept = kept[: moments.randint(0, len(kept))]
            position, data = kept[-1] if kept else (0, None)
            if kind == "torn" and data:
                kept[-1] = (position, data[: moments.randrange(len(data))])
        elif kind == "some":
            kept = [write for write in kept if moments.random() < 0.5]
        content = self.content(kept)
        return content.ljust(len(self.content()), b"\0") if kind == "zeros" else content


@dataclass
class _Folder:
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    unsynced: list[tuple[tuple[str, _File | _Folder | None], ...]] = field(default_factory=list)
    """The changes after the last fsync; each sets some names, to None if they are removed."""

    def entries(self, changes: int | None = None) -> dict[str, _File | _Folder]:
        found: dict[str, _File | _Folder | None] = dict(self.synced)
        for change in self.unsynced[:changes]:
            found.update(change)
        return {name: entry for name, entry in found.items() if entry is not None}


class Disk:
    """The contents of a folder, as calls have changed them or a cut leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.root = _Folder()
        self._positions: dict[tuple[int, int], int | None] = {}

    def apply(self, call: Call) -> None:
        """Apply a call."""
        if call.path == self.folder:
            if call.name in ("fsync", "fdatasync"):
                self._sync(self.root)
            return
        parent, name = self._parent(call.path)
        entry = parent.entries().get(name)
        if call.name in ("open", "creat"):
            if entry is None:
                entry = _File()
                parent.unsynced.append(((name, entry),))
            assert isinstance(entry, _File), call
            if "O_TRUNC" in call.flags and entry.content():
                entry.unsynced.append((0, None))
            self._positions[id(entry), call.fd] = None if "O_APPEND" in call.flags else 0
        elif call.name in ("write", "writev", "pwrite64"):
            assert isinstance(entry, _File), call
            at = call.offset
            if at is None:
                at = self._positions[id(entry), call.fd]
                at = len(entry.content()) if at is None else at
                if self._positions[id(entry), call.fd] is not None:
                    self._positions[id(entry), call.fd] = at + len(call.data)
            entry.unsynced.append((at, call.data))
            if "O_SYNC" in call.flags:
                self._sync(entry)
        elif call.name == "lseek":
            if self._positions.get((id(entry), call.fd)) is not None:
                self._positions[id(entry), call.fd] = call.offset
        elif call.name == "ftruncate":
            assert isinstance(entry, _File), call
            assert call.offset is not None
            at, length = call.offset, len(entry.content())
            entry.unsynced.append((at, None) if at < length else (length, bytes(at - length)))
            if "O_SYNC" in call.flags:
                self._sync(entry)
        elif call.name in ("fsync", "fdatasync"):
            self._sync(entry)
        elif call.name == "mkdir":
            parent.unsynced.append(((name, _Folder()),))
        elif call.name in ("unlink", "rmdir"):
            parent.unsynced.append(((name, None),))
        elif call.name in ("rename", "link"):
            other, new = self._parent(call.to)
            assert entry is not None, call
            removed = ((name, None),) if call.name == "rename" else ()
            if other is parent:
                parent.unsynced.append((*removed, (new, entry)))
            else:
                other.unsynced.append(((new, entry),))
                parent.unsynced.append(removed)

    def _parent(self, path: str) -> tuple[_Folder, str]:
        *folders, name = path.removeprefix(self.folder).strip("/").split("/")
        parent = self.root
        for folder in folders:
            inner = parent.entries()[folder]
            assert isinstance(inner, _Folder), path
            parent = inner
        return parent, name

    def _sync(self, entry: _File | _Folder | None) -> None:
        if isinstance(entry, _File):
            entry.synced, entry.unsynced = entry.content(), []
        elif isinstance(entry, _Folder):
            entry.synced, entry.unsynced = entry.entries(), []

    def synced(self) -> dict[str, bytes]:
        """Return the files as their last fsync and those of their folders left them.

        The keys are the paths in the folder.
        """

        def walk(folder: _Folder, prefix: str) -> Iterator[tuple[str, bytes]]:
            for name, entry in folder.synced.items():
                if isinstance(entry, _Folder):
                    yield from walk(entry, f"{prefix}{name}/")
                else:
                    yield f"{prefix}{name}", entry.synced

        return dict(walk(self.root, ""))

    def write(self, to: Path, moments: random.Random | None = None) -> None:
        """Write the contents to a new folder.

        moments: the source of chance for a state that a power cut may leave; if None, nothing is lost.
        """
        contents: dict[int, bytes] = {}

        def write(folder: _Folder, to: Path) -> None:
            to.mkdir()
            n = len(folder.unsynced)
            changes = n if moments is None else moments.choice([0, n, moments.randint(0, n)])
            for name, entry in folder.entries(changes).items():
                if isinstance(entry, _Folder):
                    write(entry, to / name)
                    continue
                if id(entry) not in contents:  # a file may have several names
                    contents[id(entry)] = entry.content() if moments is None else entry.after_cut(moments)
                (to / name).write_bytes(contents[id(entry)])

        write(self.root, to)


def disk_after(calls: Sequence[Call], folder: Path) -> Disk:
    """Return the contents of a folder after these calls."""
    disk = Disk(folder)
    for call in calls:
        disk.apply(call)
    return disk


def states(calls: Sequence[Call], folder: Path, to: Path, *, n: int, seed: int = 0) -> Iterator[Path]:
    """Yield folders with random states after a power cut during these calls.

    folder: the folder of the trace. to: the folder for those of the states.
    """
    moments = random.Random(seed)
    for number in range(n):
        state = to / f"state{number}"
        disk_after(calls[: moments.randint(0, len(calls))], folder).write(state, moments)
        yield state
