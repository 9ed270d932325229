"""Tests of the download of the tutorial's text, against a local server."""

import contextlib
import hashlib
import http.server
import itertools
import logging
import random
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigramlm.config.run_config import load
from bigramlm.data import shakespeare
from bigramlm.data.config import BundledConfig, DataConfig, ShakespeareConfig
from bigramlm.utils import network, paths
from tests.helpers import TIMEOUT, Cli, assert_refused, refuses, resumed, serving

# A stand-in for Shakespeare's text, which the repository does not contain.
TEXT = bytes(random.Random(0).choices(b"abcdefgh \n", k=300_000))
NO_SERVER = "http://127.0.0.1:9/"


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler whose response depends on the requested path."""

    over: threading.Event
    """Set when all tests have finished."""

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # in some tests the client closes the connection early
            self.answer()

    def answer(self) -> None:
        if self.path == "/404":
            self.send_error(404)
            return
        if self.path == "/hang":
            self.over.wait()
            return
        bodies = {"/wrong": TEXT[:-1] + b"!", "/short": TEXT[:1000], "/long": TEXT + b"x"}
        body = bodies.get(self.path, TEXT)
        self.send_response(200)
        if self.path != "/nolength":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/trickle":
            while not self.over.wait(0.01):
                self.wfile.write(b"a")
            return
        self.wfile.write(body[:1000] if self.path == "/truncated" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    over = threading.Event()
    with serving(Handler, over=over) as address:
        yield address
        over.set()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a home folder without sources/, and expect the stand-in text."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(shakespeare, "SIZE", len(TEXT))
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(TEXT).hexdigest())
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def config(url: str, *, timeout: float = TIMEOUT, **fields: object) -> ShakespeareConfig:
    return ShakespeareConfig(url=url, timeout=timeout, **fields)  # type: ignore[arg-type]


def prepared(cfg: ShakespeareConfig) -> DataConfig:
    """Prepare the text, with an address that the user typed."""
    with network.typed([f"data.url={cfg.url}"]):
        return cfg.prepare()


def assert_no_files_left(cfg: ShakespeareConfig) -> None:
    assert not list(cfg.file().parent.glob("*"))


@pytest.mark.parametrize("path", ["/good", "/nolength"])
def test_good_download_leaves_only_the_whole_text(server: str, path: str) -> None:
    cfg = config(server + path)
    assert prepared(cfg) is cfg
    assert cfg.file().read_bytes() == TEXT
    assert [p.name for p in cfg.file().parent.iterdir()] == ["shakespeare.txt"]


BAD = {
    "/404": ["404"],
    "/hang": ["timed out"],
    "/short": ["1,000", "300,000"],
    "/long": ["more", "300,000"],
    "/truncated": ["0 bytes"],  # in the message of bigramlm or of Python
    "/wrong": ["SHA-256"],
}


@pytest.mark.parametrize(("path", "named"), BAD.items(), ids=lambda value: str(value).strip("/"))
def test_bad_download_is_refused_and_leaves_no_files(server: str, path: str, named: list[str]) -> None:
    cfg = config(server + path, timeout=0.3 if path == "/hang" else TIMEOUT, fallback=False)
    with refuses(server + path, cfg.file(), "data=bundled", *named):
        prepared(cfg)
    assert_no_files_left(cfg)


def test_endless_download_is_aborted(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve bytes faster than the time-out, with a clock that runs fast."""
    clock = itertools.count(step=int(TIMEOUT))
    monkeypatch.setattr(shakespeare, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    cfg = config(server + "/trickle", fallback=False)
    with refuses(server + "/trickle", "seconds", "data=bundled"):
        prepared(cfg)
    assert next(clock) > 3 * TIMEOUT, "the download continues for a while"
    assert_no_files_left(cfg)


def test_refused_connection_falls_back_to_the_bundled_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        used = prepared(config(NO_SERVER, fallback=True))
    assert isinstance(used, BundledConfig)
    assert "NOT SHAKESPEARE" in caplog.text
    assert "refused" in caplog.text


def test_full_disk_is_not_reported_as_a_failed_download(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bigramlm.utils.files.os.fsync", full)
    cfg = config(server + "/good")
    with pytest.raises(OSError, match="No space left"):
        prepared(cfg)
    assert_no_files_left(cfg)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_timeout_must_be_positive_and_finite(timeout: float) -> None:
    with refuses(field="data.timeout", value=timeout):
        ShakespeareConfig(timeout=timeout)


def test_fallback_keeps_the_other_fields() -> None:
    used = prepared(config(NO_SERVER, block_size=5, batch_size=3, train_fraction=0.5))
    assert used == BundledConfig(block_size=5, batch_size=3, train_fraction=0.5)


def test_existing_file_is_used_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(NO_SERVER)
    cfg.file().parent.mkdir(parents=True)
    cfg.file().write_bytes(TEXT)
    assert prepared(cfg) is cfg
    assert caplog.text == ""
    cfg.file().write_text("my own edition")
    assert prepared(cfg) is cfg
    assert "is not the tutorial's text" in caplog.text
    assert cfg.file().read_text() == "my own edition"


def test_run_falls_back_to_the_bundled_text_and_records_it(cli: Cli) -> None:
    ended = cli(f"data.url={NO_SERVER}", "trainer.steps=0", "data.block_size=4", "sample.max_new_tokens=5")
    assert ended.code == 0
    assert "NOT SHAKESPEARE" in ended.err
    saved = load(ended.folder / "config.yaml")
    assert saved.data == BundledConfig(block_size=4)
    assert '"name": "bundled"' in (ended.folder / "summary.json").read_text("utf-8")
    assert "NOT SHAKESPEARE" in (ended.folder / "train.log").read_text("utf-8")


def test_without_fallback_the_run_is_refused(cli: Cli) -> None:
    ended = cli(f"data.url={NO_SERVER}", "data.fallback=false", "trainer.steps=0")
    assert_refused(ended, NO_SERVER, "refused", "data=bundled")
    assert len(ended.err.splitlines()) <= 2


def test_an_address_in_a_preset_is_requested_only_if_it_is_typed(server: str, cli: Cli, tmp_path: Path) -> None:
    preset = tmp_path / "presets" / "data" / "theirs.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(f"defaults:\n  - /schema/data@_here_: shakespeare\nurl: {server}/404\nfallback: false\n")
    command = (f"--config-dir={preset.parents[1]}", "data=theirs", "trainer.steps=0", "sample.max_new_tokens=5")
    assert_refused(cli(*command), f"add data.url={server}/404", field="data.url=")
    assert_refused(cli(*command, f"data.url={server}/404"), "404: Not Found")


def test_an_address_in_a_saved_config_is_requested_only_if_it_is_typed(server: str, cli: Cli, tmp_path: Path) -> None:
    run = cli(f"data.url={server}/good", "trainer.steps=2", "sample.max_new_tokens=5", "logger=none")
    assert run.code == 0, run.err
    config = run.folder / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("/good", "/404"), "utf-8")
    config_before = config.read_bytes()
    (tmp_path / "home" / "sources" / "shakespeare.txt").unlink()
    refused = resumed(cli, run.folder, "trainer.steps=3")
    assert_refused(refused, f"add data.url={server}/404", field="data.url=")
    assert "downloading" not in refused.err
    assert config.read_bytes() == config_before
    assert_refused(resumed(cli, run.folder, "trainer.steps=3", f"data.url={server}/404"), "404: Not Found")
