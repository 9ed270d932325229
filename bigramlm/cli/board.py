"""TensorBoard with the names of runs: the command `runs.py tensorboard`.

TensorBoard names a run after its folder. So it is started on a folder of links, which have the names of the runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from bigramlm.errors import printable, require
from bigramlm.runs.find import PLAN, find, outputs, shortest_name
from bigramlm.runs.summary import RunSummary
from bigramlm.runs.walk import run_folders
from bigramlm.utils.console import note, show
from bigramlm.utils.stop import STOP_SIGNALS, Stopped, stop_signals

MAX_SELECTED, MAX_SELECTED_IN_TIME_SERIES = 40, 500
"""The numbers of runs above which TensorBoard selects none at first, and so draws nothing."""

_REFRESH_SECONDS = 5.0  # TensorBoard looks for new files as often
_END_SECONDS = 10.0
_MAX_BYTES = 200  # of a link's name; most file systems allow 255
_NOT_IN_NAMES = dict.fromkeys(map(ord, '/\\*?"<>|'), "_") | {ord(":"): "." if os.name == "nt" else ":"}


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of `runs.py tensorboard` at `--`.

    TensorBoard's own flags follow after it. The arguments of another command are not split. Raises UserError for a flag
    of TensorBoard before `--`, and for `--logdir`.
    """
    if "tensorboard" not in arguments[:1]:
        return list(arguments), []
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = list(arguments[:at]), list(arguments[at + 1 :])
    for flag in own:
        is_ours = not flag.startswith("-") or flag in ("-h", "--help")
        require(is_ours, f"{flag}: write flags of TensorBoard at the end, after -- (such as -- --port 6007)")
    for flag in flags:
        require(not flag.startswith("--logdir"), f"{flag}: omit it; the runs are chosen with PATH, before --")
    return own, flags


def run_tensorboard(targets: Sequence[str], flags: Sequence[str], *, seconds: float = _REFRESH_SECONDS) -> None:
    """Show runs in TensorBoard until it ends, and exit with its exit code.

    targets: folders of runs, of sweeps or with runs in them, or `latest`; if empty, the newest day or sweep. flags:
    arguments for TensorBoard. seconds: the time between two searches for new runs. Raises UserError if there is no run,
    or no TensorBoard.
    """
    require(
        importlib.util.find_spec("tensorboard") is not None,
        "TensorBoard is not installed; install it with: pip install tensorboard",
    )
    folders = [_find(target) for target in targets] or [_newest()]
    code: int | None = None
    with stop_signals():
        process, links = None, Links(folders)
        try:
            n = links.refresh()
            where = " ".join(map(shortest_name, folders))
            require(n > 0, f"{where}: there are no TensorBoard files yet; runs write them unless logger=none is set")
            show(
                f"{n} {'run' if n == 1 else 'runs'} in {printable(where)}; new runs are added. Ctrl-C ends TensorBoard."
            )
            told = _tell_what_to_click(n)
            command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(links.folder), *flags]
            process = subprocess.Popen(command, env={**os.environ, "PYTHONSAFEPATH": "1"})
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(seconds)
                n = links.refresh()
                told = told or _tell_what_to_click(n)
        except Stopped as stopped:
            code = 128 + stopped.signal
        finally:
            for number in STOP_SIGNALS:  # a second Ctrl-C must not leave the links behind
                signal.signal(number, signal.SIG_IGN)
            _end(process)
            links.remove()
    sys.exit(code)


def _find(target: str) -> Path:
    folder = find(target)
    return folder.parent if target == "latest" and (folder.parent / PLAN).exists() else folder


def _newest() -> Path:
    # The newest sweep, or the folder of the newest day.
    folder = _find("latest")
    return folder.parent if outputs() / "runs" in folder.parent.parents else folder


def _tell_what_to_click(n: int) -> bool:
    if n > MAX_SELECTED:
        show(
            f"TensorBoard draws none of more than {MAX_SELECTED} runs in Scalars, Custom Scalars and Text\n"
            "until you click TOGGLE ALL RUNS there, at the lower left."
        )
    if n > MAX_SELECTED_IN_TIME_SERIES:
        show("In Time Series, click the box above those of the runs, at the left.")
    return n > MAX_SELECTED


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Links:
    """A temporary folder of links to run folders, with the names of the runs.

    If this machine makes no links, as Windows without the right to, it is the folder of the runs itself.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Choose the folders in which runs are searched."""
        self.folders = list(folders)
        self._is_one_sweep = len(folders) == 1 and any((f / PLAN).exists() for f in (folders[0], folders[0].parent))
        self._links: dict[Path, Path] = {}  # the link of each run folder
        self._made: Path | None = None
        try:
            self.folder = self._made = Path(tempfile.mkdtemp(prefix="bigramlm-tensorboard-"))
            (self.folder / "link").symlink_to(self.folder)
            (self.folder / "link").unlink()
        except (OSError, NotImplementedError) as error:
            self.remove()
            self.folder = folders[0]
            with contextlib.suppress(ValueError):  # folders on different drives
                self.folder = Path(os.path.commonpath([folder.absolute() for folder in folders]))
            note(f"the names of the runs are not shown, because no links can be made here: {error}")

    def refresh(self) -> int:
        """Link the runs that have begun, and return the number of runs.

        The links to runs that were deleted are deleted.
        """
        runs = [run for run in self._runs() if any(run.glob("events.out.tfevents.*"))]
        if self._made is None:
            return len(runs)
        for run in set(self._links) - set(runs):
            self._links.pop(run).unlink(missing_ok=True)
        taken = {link.name.casefold() for link in self._links.values()}
        for run in runs:
            if run not in self._links:
                name = unused_name(link_name(RunSummary.read(run), with_time=not self._is_one_sweep), taken)
                taken.add(name.casefold())
                (self.folder / name).symlink_to(run, target_is_directory=True)
                self._links[run] = self.folder / name
        return len(runs)

    def remove(self) -> None:
        """Delete the links and their folder, and nothing that they lead to."""
        for link in self._links.values():
            link.unlink(missing_ok=True)
        if self._made is not None:
            self._made.rmdir()
        self._links, self._made = {}, None

    def _runs(self) -> Iterator[Path]:
        found = {run.resolve(): run.absolute() for folder in self.folders for run in run_folders(folder)}
        return iter(found.values())


def link_name(run: RunSummary, *, with_time: bool) -> str:
    """Return the name of a run as the name of a file: `14:04 gpt lr=0.01`.

    with_time: if True, the name begins with the time at which the run began, and its day if that is not today.
    """
    name = run.label or run.folder.name
    if with_time:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            start = datetime.fromisoformat(run.started).astimezone()
            name = (
                f"{start:%H:%M}" + f" {name}"
                if start.date() == datetime.now().date()
                else f"{start:%m-%d %H:%M} {name}"
            )
    safe = printable(name).translate(_NOT_IN_NAMES).strip(" .")
    return safe.encode()[:_MAX_BYTES].decode(errors="ignore") or "run"


def unused_name(name: str, taken: set[str]) -> str:
    """Return the name, with a number after it if it is taken.

    taken: the names in lower case, because some file systems do not distinguish cases.
    """
    names = (name if n == 1 else f"{name} ({n})" for n in range(1, len(taken) + 2))
    return next(name for name in names if name.casefold() not in taken)
