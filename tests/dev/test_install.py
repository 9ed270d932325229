"""Tests of the installation, with a small project and a package index of its own."""

import http.server
import io
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigramlm.dev import install
from bigramlm.dev.install import Environment
from bigramlm.utils import paths
from tests.helpers import serving

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""

# Builds an editable wheel of a project with the module `small` and no requirements.
BACKEND = """
import os, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(folder, "small-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small.pth", os.getcwd())
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n")
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "")
    return "small-1-py3-none-any.whl"
"""


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that has nothing but a PyTorch, or does not answer."""

    version = "2.0.0+cpu"
    hangs = False

    def do_GET(self) -> None:
        name = f"torch-{self.version}-py3-none-any.whl"
        if self.hangs:
            self.rfile.read(1)  # until the client gives up
        page = f'<a href="/{name}">{name}</a>'.encode() if self.path == "/torch/" else None
        content = _wheel(self.version) if self.path.endswith(".whl") else page
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", "text/html" if content is page else "application/zip")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _wheel(version: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        folder = f"torch-{version}.dist-info"
        wheel.writestr("torch.py", f"version = {version!r}")
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def linux_without_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe Linux without an NVIDIA driver, and without settings of pip."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(install, "nvidia_driver", lambda: "")
    monkeypatch.setattr(install, "TIMEOUTS", (100, 200))  # for busy machines
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment without packages, only once because it takes seconds."""
    folder = tmp_path_factory.mktemp("blank") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make the project, without an environment."""
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "small.py").touch()
    (folder / "constraints.txt").write_text("numpy==1.0\ntorch==2.0.0\n")
    return folder


@pytest.fixture
def environment(home: Path) -> Environment:
    """Return an environment of the project whose Python is that of the tests."""
    found = Environment(home)
    found.python = Path(sys.executable)
    return found


@pytest.fixture
def installing(home: Path, blank: Path) -> Path:
    """Return the project with an environment in which nothing is installed yet."""
    copied = shutil.copytree(blank, home / ".venv", symlinks=True)
    activate = copied / "bin" / "activate"
    activate.write_text(activate.read_text("utf-8").replace(str(blank), str(copied)), "utf-8")
    return home


@pytest.fixture
def index() -> Iterator[str]:
    """Serve the package index."""
    with serving(Index) as address:
        yield address


def refused_address() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def run_in(home: Path, code: str) -> str:
    command = [str(home / ".venv" / "bin" / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_machine_without_a_driver_gets_the_cpu_build(
    installing: Path, index: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main(["--cpu-index", index], installing) == 0
    assert "CPU build" in capsys.readouterr().out
    assert run_in(installing, "import small, torch; print(torch.version)") == "2.0.0+cpu"

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "pip", lambda *_: pytest.fail("it is complete"))
        assert install.main(["--cpu-index", index], installing) == 0
        assert capsys.readouterr().out == ""
    (installing / "constraints.txt").write_text("torch==2.0.0\n")
    assert install.main(["--cpu-index", refused_address()], installing) == 0, "torch is there already"
    assert run_in(installing, "import torch; print(torch.version)") == "2.0.0+cpu"


def test_a_copied_folder_gets_its_own_environment(
    installing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Use a project that does not require torch, so that no index is needed."""
    assert install.main(["--cpu-index", refused_address()], installing) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "index" in line]
    assert "cannot be reached" in said

    copied = shutil.copytree(installing, tmp_path / "copied", symlinks=True)
    assert install.main([], copied) == 0
    assert run_in(copied, "import small; print(small.__file__)") == str(copied / "small.py")
    assert run_in(installing, "import small; print(small.__file__)") == str(installing / "small.py")


def test_a_build_that_was_asked_for_is_not_replaced(installing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["--torch", "cpu", "--cpu-index", refused_address()], installing) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TORCH=cpu" in line
    assert "TORCH=default" in line


@pytest.mark.slow
def test_an_interrupted_installation_is_continued(
    installing: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Environment, *arguments: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "pip", interrupted)
        assert install.main(["--cpu-index", index], installing) == 130
    # As if the installation of pip had been interrupted, and then that of torch.
    packages = next((installing / ".venv").glob("lib/python*/site-packages"))
    for folder in packages.glob("pip*"):
        shutil.rmtree(folder)
    (packages / "torch-2.0.0.dist-info").mkdir()
    (packages / "torch-2.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    (packages / "~orch").mkdir()
    assert install.main(["--cpu-index", index], installing) == 0
    assert run_in(installing, "import small, torch; print(torch.version)") == "2.0.0+cpu"
    assert not (packages / "~orch").exists()


@pytest.mark.parametrize(
    ("attributes", "timeout", "problem"),
    [({}, 100, ""), ({"version": "2.0.1+cpu"}, 100, "2.0.0"), ({"hangs": True}, 1, "does not answer")],
    ids=["has it", "has another version", "hangs"],
)
def test_the_index_is_asked(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], timeout: int, problem: str
) -> None:
    monkeypatch.setattr(install, "TIMEOUTS", (100, timeout))
    with serving(Index, **attributes) as address:
        found = environment.problem_with(address)
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        *[({}, ""), ({"PIP_TIMEOUT": "3"}, ""), ({"PIP_INDEX_URL": "http://a.invalid"}, "index-url")],
        *[({"PIP_EXTRA_INDEX_URL": "http://a.invalid"}, "extra-index-url"), ({"PIP_NO_INDEX": "1"}, "no-index")],
        *[({"PIP_FIND_LINKS": "/wheels"}, "find-links"), ({"PIP_CONFIG_FILE": "pip.conf"}, "global.index-url")],
    ],
)
def test_settings_of_pip_that_name_an_index_are_found(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], setting: str
) -> None:
    (environment.home / "pip.conf").write_text("[global]\nindex-url = http://a.invalid\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(environment.home / value) if name == "PIP_CONFIG_FILE" else value)
    assert environment.own_index() == setting


@pytest.mark.parametrize(
    ("platform", "driver", "setting", "problem", "build"),
    [
        ("linux", "", "", "", "cpu"),
        ("linux", "/dev/nvidia0", "", "", "default"),
        ("linux", "", "global.index-url", "", "default"),
        ("linux", "", "", "it does not answer", "default"),
        ("darwin", "", "", "", "default"),
        ("win32", "", "", "", "default"),
    ],
)
def test_the_build_suits_the_machine(
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    driver: str,
    setting: str,
    problem: str,
    build: str,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(install, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(environment, "own_index", lambda: setting)
    monkeypatch.setattr(environment, "problem_with", lambda index: problem)
    chosen, reason = install.choose(environment, "http://a.invalid")
    assert chosen == build
    assert (driver or setting or problem) in reason
    assert install.choose(environment, "")[0] == "default"


def test_a_driver_is_found_by_what_it_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "DRIVER", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert install.nvidia_driver() == ""
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert install.nvidia_driver() == str(tmp_path / "nvidia-smi")
    (tmp_path / "b").touch()
    assert install.nvidia_driver() == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "platform", "named"),
    [
        (["--torch", "gpu"], "linux", ["TORCH=gpu", "auto, cpu, cuda, default"]),
        (["--torch", "cuda"], "darwin", ["TORCH=cuda", "pytorch.org"]),
        (["--torch", "cpu"], "linux", ["TORCH=cpu", "--cpu-index"]),
    ],
)
def test_builds_that_are_impossible_are_refused(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    platform: str,
    named: list[str],
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert install.main(arguments, home) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ["error: ", *named]), line
    assert not (home / ".venv").exists()


def test_a_python_without_venv_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert install.main([], home) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sudo apt install python3" in line


def test_something_else_named_venv_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".venv").mkdir()
    (home / ".venv" / "thesis.txt").touch()
    assert install.main([], home) == 2
    assert "not a virtual environment" in capsys.readouterr().err
    assert (home / ".venv" / "thesis.txt").exists()


def test_a_python_that_is_too_old_or_missing_is_refused() -> None:
    code = "import runpy, sys; sys.version_info, sys.version = (3, 9), '3.9.2 (x)'; runpy.run_path(sys.argv[1])"
    script = paths.home() / "scripts" / "install.py"
    ended = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=False)
    (line,) = ended.stderr.splitlines()
    assert "3.9.2" in line
    assert "3.10" in line
    assert ended.returncode != 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_names_a_python_that_is_missing() -> None:
    command = ["make", "-s", "-C", str(paths.home()), "install", "PYTHON=python-of-nobody"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "python-of-nobody: not found" in ended.stderr.splitlines()[0]


@pytest.mark.slow
def test_failures_of_pip_say_where_its_output_is(
    installing: Path, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (installing / "backend.py").write_text("syntax error")
    assert install.main(["--cpu-index", index], installing) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "install.log" in line
    assert "syntax error" in (installing / ".venv" / "install.log").read_text("utf-8")
    assert install.Environment(installing).record() == {"torch": "auto"}
