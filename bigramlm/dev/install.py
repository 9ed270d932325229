"""The installation of the repository into .venv: python3 scripts/install.py.

`make` calls it before each command that needs the environment. If the environment is complete, it returns at once;
otherwise it creates, repairs or continues it. It runs before anything is installed, so it imports the standard library
only.

On Linux, PyTorch's default build includes CUDA, which is gigabytes. On a machine without an NVIDIA driver, the CPU
build of the same version is installed instead, from an index of PyTorch's own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
"""The repository."""

BUILDS = ("auto", "cpu", "cuda", "default")
"""The builds of PyTorch that can be asked for; `default` is that of pip's own index."""

DRIVER = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")
"""The paths of which at least one exists if there is an NVIDIA driver, on Linux and in WSL."""

TIMEOUTS = (5, 8)
"""The seconds that the index of CPU builds has for an answer, and for all of its answers together."""

# Settings of pip that say where packages come from.
_SOURCES = re.compile(r"^\S+\.(extra-index-url|index-url|pypi-url|find-links|no-index)=", re.MULTILINE)
_WHEEL = re.compile(
    r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^-/\s]+)-([^-/\s]+)-\S*\.whl(?: \((.+)\))?$"
)


class InstallError(Exception):
    """An error in one line, with the way out."""


def main(arguments: Sequence[str] | None = None, home: Path = HOME) -> int:
    """Install the repository in `home` into its .venv, and return the exit code."""
    parser = argparse.ArgumentParser("install.py", description="Create .venv and install this repository into it.")
    parser.add_argument("--dev", action="store_true", help="install what the tests and the linters need, too")
    parser.add_argument("--torch", default="auto", metavar="BUILD", help=f"PyTorch's build: {', '.join(BUILDS)}")
    parser.add_argument("--cpu-index", default="", metavar="URL", help="the index of PyTorch's CPU builds")
    options = parser.parse_args(arguments)
    try:
        install(Environment(home), options.torch, options.cpu_index, dev=options.dev)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command continues the installation.", file=sys.stderr)
        return 130
    return 0


def install(environment: Environment, torch: str, cpu_index: str, *, dev: bool) -> None:
    """Install the repository into its environment, unless that is complete.

    torch: one of `BUILDS`. cpu_index: the URL of an index with CPU builds. Raises InstallError for a choice that is not
    possible here, and if pip fails.
    """
    if torch not in BUILDS:
        raise InstallError(f"TORCH={torch}: unknown; choose one of {', '.join(BUILDS)}")
    if torch == "cuda" and sys.platform != "linux":
        raise InstallError("TORCH=cuda: on Linux only; on Windows, pytorch.org names the command that installs it")
    if torch == "cpu" and not cpu_index:
        raise InstallError("TORCH=cpu: --cpu-index=URL must be given, as make does")
    wanted, record = "dev" if dev else "base", environment.record()
    is_current = record.get(wanted) == environment.inputs() and torch in ("auto", record.get("torch"))
    if is_current and environment.is_usable():
        return
    print("Installing into .venv; the first time takes a few minutes.", flush=True)
    environment.prepare()
    remembered, record = record.get("torch", "auto"), environment.record()  # none if it was created again
    build = remembered if torch == "auto" else torch
    environment.write_record({"torch": build})  # if this is interrupted, the next call continues
    if build != remembered or not environment.has_torch():
        _install_torch(environment, build, cpu_index)
    print(f"Installing the other packages{', with those for tests and linters' if dev else ''}.", flush=True)
    environment.pip("-c", "constraints.txt", "-e", ".[dev]" if dev else ".")
    inputs = environment.inputs()
    environment.write_record({**record, "torch": build, "base": inputs, wanted: inputs})


def _install_torch(environment: Environment, build: str, cpu_index: str) -> None:
    # Say which build is installed and why. The default build is left to the installation of all packages, which has it
    # among its requirements, unless another build is there.
    torch = f"PyTorch {environment.torch_pin}"
    if build == "cpu":
        reason = "as TORCH=cpu says"
        if problem := environment.problem_with(cpu_index):
            raise InstallError(f"TORCH=cpu: {problem}; try later, or install with TORCH=default")
    elif build == "auto":
        build, reason = choose(environment, cpu_index)
    else:
        reason = f"as TORCH={build} says"
    if build == "cpu":
        print(f"Installing {torch}, the CPU build (about 0.2 GB), {reason}.", flush=True)
        environment.pip("--no-deps", "--force-reinstall", "--index-url", cpu_index, environment.torch_requirement)
        return
    has_cuda = (sys.platform, platform.machine()) == ("linux", "x86_64") and not environment.own_index()
    print(f"Installing {torch}{' with CUDA (about 2.7 GB)' if has_cuda else ''}, {reason}.", flush=True)
    if environment.has_torch():
        environment.pip("--no-deps", "--force-reinstall", environment.torch_requirement)


def choose(environment: Environment, cpu_index: str) -> tuple[str, str]:
    """Return the build of PyTorch that suits the machine, cpu or default, and why.

    Waits for the index as long as `TIMEOUTS` says.
    """
    if sys.platform != "linux" or not cpu_index:
        return "default", "the default build"
    if driver := nvidia_driver():
        return "default", f"because there is an NVIDIA driver ({driver}); TORCH=cpu installs the CPU build"
    if setting := environment.own_index():
        return "default", f"from the package index that pip is configured with ({setting})"
    if problem := environment.problem_with(cpu_index):
        return "default", f"because {problem}"
    return "cpu", "because there is no NVIDIA driver; TORCH=cuda installs the build with CUDA"


def nvidia_driver() -> str:
    """Return a path of the NVIDIA driver, or an empty string if there is none."""
    found = [path for path in DRIVER if os.path.exists(path)]  # noqa: PTH110
    return (found or [shutil.which("nvidia-smi") or ""])[0]


class Environment:
    """The virtual environment .venv of a repository."""

    def __init__(self, home: Path) -> None:
        """Describe the environment of the repository in `home`; it need not exist yet."""
        self.home, self.folder = home, home / ".venv"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.log = self.folder / "install.log"
        pin = re.search(r"^torch==(\S+)", (home / "constraints.txt").read_text("utf-8"), re.MULTILINE)
        self.torch_pin = pin[1] if pin else ""
        self.torch_requirement = f"torch=={self.torch_pin}" if pin else "torch"

    def inputs(self) -> str:
        """Return a hash of the files that say what is installed."""
        names = ("pyproject.toml", "constraints.txt")
        return hashlib.sha256(b"".join((self.home / name).read_bytes() for name in names)).hexdigest()

    def record(self) -> dict[str, str]:
        """Return what the last complete installation wrote, or an empty dict."""
        try:
            return dict(json.loads((self.folder / "installed").read_text("utf-8")))
        except (OSError, ValueError, TypeError):  # none, or of an earlier version
            return {}

    def write_record(self, record: Mapping[str, str]) -> None:
        """Replace what `record` returns."""
        (self.folder / "installed").write_text(json.dumps(record), "utf-8")

    def is_usable(self) -> bool:
        """Return True if the environment is in its place, and its Python runs and has pip."""
        return self.python.exists() and not self._was_moved() and self._runs("import pip")

    def prepare(self) -> None:
        """Create the environment, or repair it.

        Raises InstallError if this Python cannot create environments, or if .venv is something else.
        """
        is_empty = not os.path.lexists(self.folder) or (self.folder.is_dir() and not any(self.folder.iterdir()))
        if not is_empty and not (self.folder / "pyvenv.cfg").is_file():
            raise InstallError(f"{self.folder}: not a virtual environment; rename it or delete it")
        if not self.is_usable():
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
                raise InstallError(
                    f"{sys.executable}: no venv in this Python; on Debian and Ubuntu: sudo apt install {version}-venv"
                )
            # Only pip may be missing: uv creates environments without it. If the folder of packages is missing too, the
            # Python of the environment was replaced by another version.
            code = "import os, sys, sysconfig; sys.exit(not os.path.isdir(sysconfig.get_path('purelib')))"
            if self.python.exists() and not self._was_moved() and self._runs(code):
                self._runs("import ensurepip; ensurepip.bootstrap()")
            if not self.is_usable():
                self._call(sys.executable, "-m", "venv", "--clear", self.folder)
        self.log.unlink(missing_ok=True)
        for folder in (*self.folder.glob("lib/python*/site-packages"), *self.folder.glob("Lib/site-packages")):
            _delete_unfinished(folder)

    def pip(self, *arguments: str) -> None:
        """Run `pip install` with arguments, and show what it downloads.

        Its output is appended to .venv/install.log. Raises InstallError if it fails.
        """
        # Wheels of a gigabyte may be too large for /tmp; and their sizes there show how far the download is.
        temporary = self.folder / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))}
        flags = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
        command = [self.python, "-m", "pip", "install", *flags, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=self.home, env=environ, text=True, errors="replace", **pipes)  # type: ignore[call-overload]
        try:
            with self.log.open("a", 1, encoding="utf-8") as log, Progress(temporary) as progress:
                for line in process.stdout:
                    log.write(line)
                    progress.read(line)
            process.wait()
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(temporary, ignore_errors=True)
        if process.returncode:
            raise InstallError(_reason(self.log.read_text("utf-8"), self.log))

    def own_index(self) -> str:
        """Return the first setting of pip that names an index or a folder, or ''."""
        found = _SOURCES.search(self._output("-m", "pip", "config", "list"))
        return found[0].removesuffix("=").removeprefix(":env:.") if found else ""

    def problem_with(self, cpu_index: str) -> str:
        """Return why PyTorch cannot be installed from an index, or an empty string."""
        flags = ("--disable-pip-version-check", "--no-input", "--timeout", str(TIMEOUTS[0]), "--retries", "0")
        command = ("-m", "pip", "index", "versions", "torch", "--index-url", cpu_index, *flags)
        try:
            printed = self._output(*command, limit=TIMEOUTS[1])
        except subprocess.TimeoutExpired:
            return "PyTorch's index of CPU builds does not answer"
        if not printed:
            return "PyTorch's index of CPU builds cannot be reached, or has none for this machine"
        versions = [version.removesuffix("+cpu") for version in re.findall(r"[^\s,()]+", printed)]
        is_there = not self.torch_pin or self.torch_pin in versions
        return "" if is_there else f"PyTorch's index of CPU builds has no {self.torch_pin} for this machine"

    def has_torch(self) -> bool:
        """Return True if the pinned version of PyTorch is installed, in whatever build."""
        version = self._output("-c", "import importlib.metadata as m; print(m.version('torch'))").strip()
        return re.sub(r"\+.*", "", version) == self.torch_pin if self.torch_pin else version != ""

    def _was_moved(self) -> bool:
        # The scripts of an environment contain its absolute path. A copy would use the packages of the original.
        try:
            text = (self.python.parent / "activate").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        if str(self.folder) in text:
            return False
        written = re.findall(r"VIRTUAL_ENV=(.*)", text)
        paths = [Path(word) for line in written for word in _words(line) if Path(word).is_absolute()]
        return bool(paths) and not any(path.exists() and path.samefile(self.folder) for path in paths)

    def _runs(self, code: str) -> bool:
        try:
            return subprocess.run([self.python, "-c", code], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def _output(self, *arguments: str, limit: float | None = None) -> str:
        # The standard output of a Python program of the environment, or nothing if it fails.
        command = [str(self.python), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.home, timeout=limit)
        return ended.stdout if ended.returncode == 0 else ""

    def _call(self, *command: str | Path) -> None:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no message"]
            raise InstallError(f"{shlex.join(map(str, command))}: {lines[-1]}")


class Progress:
    """The progress of pip: a line per large package, and a changing one on terminals."""

    def __init__(self, temporary: Path) -> None:
        """Read the sizes of unfinished downloads in the folder `temporary`."""
        self._temporary, self._status, self._shown = temporary, "", 0
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def read(self, line: str) -> None:
        """Read a line of pip's output."""
        line = line.rstrip()
        if wheel := _WHEEL.match(line):
            name, version, size = wheel.groups()
            self._status = f"{name} {version}{f' ({size})' if size else ''}"
            if size and size.endswith(("MB", "GB")):
                self._show(f"  {self._status}")
        elif line.startswith("Installing collected packages: "):
            n = line.count(",") + 1
            self._status = f"copying {n} package{'s' * (n > 1)} into place"
            self._show(f"  {self._status}")
        elif "Retrying (Retry(total=4" in line:
            self._show("  no connection to the package index; trying again")
        elif line.lstrip().startswith("Collecting "):
            self._status = f"finding {line.split()[1]}"

    def _show(self, line: str) -> None:
        print(f"\r{line:<{self._shown}}" if self._shown else line, flush=True)
        self._shown = 0

    def _run(self) -> None:
        while not self._ended.wait(0.3):
            # The last file is the one that is being written.
            size = max(map(_written, self._temporary.glob("pip-unpack-*/*")), default=(0.0, 0))[1]
            line = f"  {self._status}{f': {size / 1e6:.0f} MB' if size > 1e6 else ''}"
            line = line[: shutil.get_terminal_size()[0] - 1]
            print(f"\r{line:<{self._shown}}", end="", flush=True)
            self._shown = len(line)
        print(f"\r{'':<{self._shown}}\r", end="", flush=True)


def _written(path: Path) -> tuple[float, int]:
    # When a file was last written, and its size in bytes.
    with contextlib.suppress(OSError):
        return path.stat().st_mtime, path.stat().st_size
    return 0.0, 0


def _words(text: str) -> list[str]:
    with contextlib.suppress(ValueError):
        return shlex.split(text)
    return []


def _delete_unfinished(packages: Path) -> None:
    # What pip leaves when it is stopped: packages without a list of their files, which it would take for installed, and
    # those that it was about to delete.
    for path in (*packages.glob("*.dist-info"), *packages.glob("~*")):
        if path.name.startswith("~") or not (path / "RECORD").is_file():
            shutil.rmtree(path, ignore_errors=True)


def _reason(output: str, log: Path) -> str:
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    network = "no connection to the package index: " if "Retrying (Retry(" in output else ""
    last = errors[-1] if errors else "pip failed"
    return f"{network}{last}; all of pip's output is in {log}. The same command continues the installation"


if __name__ == "__main__":
    sys.exit(main())
