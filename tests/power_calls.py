"""Traces of commands for simulated power cuts, without strace.

Every Python process of the command, also forked and spawned ones, reports each of its calls that may change files, and
each SQL statement, to the tracer just before it makes the call, and waits. The tracer compares the folder with the
calls so far, and appends those that lead from one to the other. So the writes of native code are in the trace, at the
latest when the command has ended. Only calls of fsync are known from the reports alone.

This differs from the system calls in three respects:

- Writes to a file between two reports are one write. A cut may leave any part of it, as of several ones.
- A file that native code syncs counts as not synced, unless it is a database of SQLite. SQLite syncs a database and its
  folder before a transaction ends, when it deletes the journal: the changes of a transaction are one synced write, and
  journals are not in the trace. So states with half a transaction, which SQLite repairs, are not simulated.
- If native code deletes a file and creates another one between two reports, and the new one gets the same inode, the
  trace contains a rename.
"""

from __future__ import annotations

import bisect
import json
import os
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.power import Call

# The code that every process runs first, as sitecustomize.py. An audit hook is called before the call that it reports.
_REPORTS = '''"""Report calls that may change files to the tracer."""

import json, os, socket, sqlite3, sys

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def report(name, number):
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(ADDRESS)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # the command has ended
        connection.sendall(json.dumps([name, number]).encode() + b"\\n")
        assert connection.recv(1), "the tracer has failed"


def inode(path, folder=-1):
    try:
        return os.lstat(path, dir_fd=None if folder < 0 else folder).st_ino
    except OSError:
        return 0


def audit(event, arguments):
    if event in ("os.mkdir", "os.link", "os.truncate"):
        report("change", 0)
    elif event in ("os.remove", "os.rmdir", "os.rename"):  # of a rename, the file that the new name has so far
        report("free", inode(arguments[len(arguments) // 2 - 1], arguments[-1]))
    elif event == "open" and arguments[2] & CHANGES and not isinstance(arguments[0], int):
        report(*(("truncate", inode(arguments[0])) if arguments[2] & os.O_TRUNC else ("change", 0)))


def reported(sync):
    def call(fd):
        report("sync", os.fstat(fd if isinstance(fd, int) else fd.fileno()).st_ino)
        sync(fd)

    return call


def connect(*arguments, **options):
    connection = connected(*arguments, **options)
    connection.set_trace_callback(lambda statement: report("change", 0))
    return connection


connected = sqlite3.connect
sqlite3.connect = sqlite3.dbapi2.connect = connect
os.fsync = reported(os.fsync)
if hasattr(os, "fdatasync"):
    os.fdatasync = reported(os.fdatasync)
sys.addaudithook(audit)
'''


def trace_calls(folder: Path, code: str, *arguments: str, output: Path) -> list[Call]:
    """Run Python code with arguments, and return its calls that concern a folder.

    folder: an empty folder, without links. output: a new folder for the code that reports.
    """
    output.mkdir()
    tracer = _Tracer(folder)
    with tempfile.TemporaryDirectory() as short, _Server(f"{short}/socket", tracer) as server:  # at most 100 characters
        (output / "sitecustomize.py").write_text(f"ADDRESS = {server.server_address!r}\n{_REPORTS}", "utf-8")
        path = os.pathsep.join([str(output), *filter(None, [os.environ.get("PYTHONPATH")])])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            command = [sys.executable, "-c", code, *arguments]
            environment = {**os.environ, "PYTHONPATH": path}
            ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
        finally:
            server.shutdown()
    if server.error is not None:
        raise server.error
    assert ended.returncode == 0, ended.stderr
    tracer.update()
    return tracer.calls


class _Server(socketserver.UnixStreamServer):
    """Hands the reports to the tracer, one at a time."""

    request_queue_size = 64

    def __init__(self, address: str, tracer: _Tracer) -> None:
        self.error: BaseException | None = None

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                tracer.report(*json.loads(self.rfile.readline()))
                self.wfile.write(b".")

        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.error = self.error or sys.exc_info()[1]


@dataclass
class _Entry:
    """A file or folder, as the calls so far have left it."""

    inode: int
    is_folder: bool
    content: bytes = b""
    state: tuple[int, int] | None = None
    """The size and time of change with which the content was read; None to read it again."""
    is_freed: bool = False
    """True if a call deletes it, so that something new may get the inode."""


class _Tracer:
    """The calls that have led to the contents of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.calls: list[Call] = []
        self._entries: dict[str, _Entry] = {self.folder: _Entry(folder.stat().st_ino, True)}

    def report(self, name: str, inode: int) -> None:
        """Take note of a call that a process is about to make."""
        self.update()
        path, entry = next(((path, entry) for path, entry in self._entries.items() if entry.inode == inode), ("", None))
        if entry is None:
            return
        if name == "sync":
            self.calls.append(Call("fsync", path))
        elif name == "free":
            entry.is_freed = True
        elif name == "truncate" and entry.content:
            self.calls.append(Call("ftruncate", path, offset=0))
            entry.content, entry.state = b"", None

    def update(self) -> None:
        """Append the calls that lead to the present contents of the folder."""
        found = self._walk()
        while (again := self._walk()).keys() != found.keys() or any(
            again[path].st_ino != found[path].st_ino for path in again
        ):
            found = again  # another process renamed something meanwhile
        for path, status in found.items():  # folders before their contents
            self._appear(path, status, found)
        for path in sorted(self._entries.keys() - found.keys(), reverse=True):
            self._remove(path)
        for path, status in found.items():
            entry = self._entries[path]
            if not entry.is_folder and entry.state != (status.st_size, status.st_mtime_ns):
                self._read(path, entry)

    def _walk(self) -> dict[str, os.stat_result]:
        found = {self.folder: os.stat(self.folder)}  # noqa: PTH116

        def walk(folder: str) -> None:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.endswith("-journal"):
                        continue
                    try:
                        found[entry.path] = entry.stat(follow_symlinks=False)
                        assert not entry.is_symlink(), entry.path
                        if entry.is_dir():
                            walk(entry.path)
                    except FileNotFoundError:
                        found.pop(entry.path, None)

        walk(self.folder)
        return found

    def _appear(self, path: str, status: os.stat_result, found: dict[str, os.stat_result]) -> None:
        is_folder = stat.S_ISDIR(status.st_mode)
        present = self._entries.get(path)
        if present is not None and (present.inode, present.is_folder) == (status.st_ino, is_folder):
            return
        same = [name for name, entry in self._entries.items() if entry.inode == status.st_ino and not entry.is_freed]
        old = next((name for name in same if self._entries[name].is_folder == is_folder), None)
        if old is None:
            if present is not None:
                self._remove(path)
            self._entries[path] = _Entry(status.st_ino, is_folder)
            self.calls.append(Call("mkdir" if is_folder else "open", path, flags="O_CREAT"))
        elif old in found and found[old].st_ino == status.st_ino:
            self.calls.append(Call("link", old, path))
            self._entries[path] = self._entries[old]
        else:
            self.calls.append(Call("rename", old, path))
            moved = [name for name in self._entries if name == old or name.startswith(f"{old}/")]
            for name, entry in {name: self._entries.pop(name) for name in moved}.items():
                self._entries[path + name.removeprefix(old)] = entry

    def _remove(self, path: str) -> None:
        for name in sorted((name for name in self._entries if f"{name}/".startswith(f"{path}/")), reverse=True):
            self.calls.append(Call("rmdir" if self._entries.pop(name).is_folder else "unlink", name))

    def _read(self, path: str, entry: _Entry) -> None:
        journal = f"{path}-journal"
        try:
            if os.path.exists(journal):  # noqa: PTH110
                return  # in a transaction
            with open(path, "rb") as file:  # noqa: PTH123
                before = os.fstat(file.fileno())
                content = file.read()
                after = os.fstat(file.fileno())
        except FileNotFoundError:
            return
        state, is_database = (after.st_size, after.st_mtime_ns), content.startswith(b"SQLite format 3\0")
        is_same = state == (before.st_size, before.st_mtime_ns) and not os.path.exists(journal)  # noqa: PTH110
        if after.st_ino != entry.inode or (is_database and not is_same):
            return
        # The times of two changes may be the same if only milliseconds are between them.
        entry.state = state if is_same and time.time_ns() - after.st_mtime_ns > 50_000_000 else None
        flags = "O_SYNC" if is_database else ""
        if content == entry.content:
            return
        if is_database:
            self.calls.append(Call("fsync", os.path.dirname(path)))  # noqa: PTH120
        if len(content) < len(entry.content):
            self.calls.append(Call("ftruncate", path, offset=len(content), flags=flags))
        same = _common(entry.content, content)
        if same < len(content):
            self.calls.append(Call("pwrite64", path, data=content[same:], offset=same, flags=flags))
        entry.content = content


def _common(a: bytes, b: bytes) -> int:
    """Return the length of the longest common prefix."""
    return bisect.bisect_left(range(1, min(len(a), len(b)) + 1), True, key=lambda n: a[:n] != b[:n])
