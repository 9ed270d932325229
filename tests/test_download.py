"""The download of the tutorial's text, against a server on this machine that behaves well and badly."""

import hashlib
import http.server
import logging
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigramlm import paths
from bigramlm.config import load
from bigramlm.data import shakespeare
from bigramlm.data.config import BundledConfig, ShakespeareConfig
from bigramlm.errors import UserError
from tests.helpers import Cli

TEXT = bytes(
    random.Random(0).choices(b"abcdefgh \n", k=300_000)
)  # stands in for Shakespeare, which is not ours to ship


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    def do_GET(self) -> None:
        if self.path == "/404":
            self.send_error(404)
            return
        if self.path == "/hang":
            time.sleep(5)
            return
        body = {"/good": TEXT, "/wrong": TEXT[:-1] + b"!", "/short": TEXT[:1000], "/long": TEXT + b"x"}.get(
            self.path, TEXT
        )
        self.send_response(200)
        if self.path != "/nolength":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/truncated":
            self.wfile.write(body[:1000])
            return
        if self.path == "/trickle":
            for _ in range(50):
                self.wfile.write(b"a")
                self.wfile.flush()
                time.sleep(0.1)
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A client that gives up is what some tests are about, and nothing to print into the output of the next one."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without sources/, and a stand-in for the text that is expected."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(shakespeare, "SIZE", len(TEXT))
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(TEXT).hexdigest())
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def config(url: str, *, timeout: float = 30.0, **fields: object) -> ShakespeareConfig:
    return ShakespeareConfig(url=url, timeout=timeout, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/good", "/nolength"])
def test_good_download_is_whole_and_leaves_nothing_else(server: str, path: str) -> None:
    cfg = config(server + path)
    assert cfg.prepare() is cfg
    assert cfg.file().read_bytes() == TEXT
    assert [p.name for p in cfg.file().parent.iterdir()] == ["shakespeare.txt"]


BAD = {
    "/404": "HTTP Error 404",
    "/hang": "timed out",
    "/short": "1,000 bytes came where the text has 300,000",
    "/long": "more than 300,000 bytes came",
    "/truncated": "1,000 bytes came|IncompleteRead",
    "/wrong": "its SHA-256 is",
    "/trickle": "not done after",
}


@pytest.mark.parametrize(("path", "reason"), BAD.items(), ids=lambda value: value.strip("/"))
def test_bad_download_is_refused_and_leaves_nothing(server: str, path: str, reason: str) -> None:
    cfg = config(server + path, timeout=0.3 if path in ("/hang", "/trickle") else 30.0, fallback=False)
    with pytest.raises(UserError, match=reason) as error:
        cfg.prepare()
    assert "data=bundled" in str(error.value)
    assert not cfg.file().exists()
    assert not list(cfg.file().parent.glob("*.part"))


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        taken = config("http://127.0.0.1:9/", fallback=True).prepare()
    assert isinstance(taken, BundledConfig)
    assert "NOT SHAKESPEARE" in caplog.text
    assert "refused" in caplog.text


def test_a_disk_that_is_full_is_not_a_download_that_failed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bigramlm.files.os.fsync", full)
    cfg = config(server + "/good")
    with pytest.raises(OSError, match="No space left"):
        cfg.prepare()
    assert not list(cfg.file().parent.iterdir())


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_out_has_an_end(timeout: float) -> None:
    with pytest.raises(UserError, match=r"data.timeout="):
        ShakespeareConfig(timeout=timeout)


def test_fallback_keeps_the_other_fields() -> None:
    taken = config("http://127.0.0.1:9/", block_size=5, batch_size=3, train_fraction=0.5).prepare()
    assert taken == BundledConfig(block_size=5, batch_size=3, train_fraction=0.5)


def test_a_file_that_is_there_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config("http://127.0.0.1:9/")
    cfg.file().parent.mkdir(parents=True)
    cfg.file().write_bytes(TEXT)
    assert cfg.prepare() is cfg
    assert caplog.text == ""
    cfg.file().write_text("my own edition")
    assert cfg.prepare() is cfg
    assert "is not the tutorial's text" in caplog.text
    assert cfg.file().read_text() == "my own edition"


def test_the_run_goes_on_with_the_bundled_text_and_records_it(cli: Cli) -> None:
    ended = cli("data.url=http://127.0.0.1:9/", "trainer.steps=0", "data.block_size=4", "sample.max_new_tokens=5")
    assert ended.code == 0
    assert "NOT SHAKESPEARE" in ended.err
    saved = load(ended.folder / "config.yaml")
    assert saved.data == BundledConfig(block_size=4)
    assert '"name": "bundled"' in (ended.folder / "summary.json").read_text("utf-8")
    assert "NOT SHAKESPEARE" in (ended.folder / "train.log").read_text("utf-8")


def test_without_fallback_the_run_is_refused(cli: Cli) -> None:
    ended = cli("data.url=http://127.0.0.1:9/", "data.fallback=false", "trainer.steps=0")
    assert ended.code == 2
    assert ended.err.strip().count("\n") <= 1
    assert "could not be downloaded" in ended.err
