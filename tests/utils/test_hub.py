"""Tests of the Hugging Face hub's cache, filled as the hub's own library does."""

import http.server
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from bigramlm.utils.hub import is_name, name_in
from tests.helpers import Ended, assert_refused, command, gpt2_folder, serving

REVISION = "0123456789abcdef0123456789abcdef01234567"
# An address at which no server listens.
NOWHERE = "http://127.0.0.1:9"
OFFLINE, UNREACHABLE = {"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": NOWHERE}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache with the model me/tiny, whose weights are in several files."""
    model = tmp_path / "hub" / "models--me--tiny"
    snapshot = model / "snapshots" / REVISION
    gpt2_folder(tmp_path / "gpt2")
    AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").save_pretrained(snapshot, max_shard_size="10KB")
    (tmp_path / "gpt2" / "tokenizer.json").rename(snapshot / "tokenizer.json")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION, "utf-8")
    return model


def record_missing(cache: Path, *names: str) -> None:
    """Record that the model does not contain these files."""
    folder = cache / ".no_exist" / REVISION
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def train(name: str, folder: Path, *overrides: str, **env: str) -> Ended:
    # The library reads its environment variables when it is imported.
    quick = ("data=bundled", "logger=none", "trainer.steps=0", "trainer.eval_batches=1", "sample.max_new_tokens=1")
    env = {"NO_PROXY": "*", "no_proxy": "*", **env}
    init = () if overrides else (f"init_from={name}",)
    return command(*quick, *init, *overrides, f"hydra.run.dir={folder / 'run'}", env=env)


@pytest.mark.parametrize("network", [OFFLINE, UNREACHABLE], ids=["offline", "unreachable"])
@pytest.mark.parametrize("missing", [(), ("model.safetensors",)], ids=["not asked yet", "known as missing"])
def test_cached_parts_are_used_without_a_network(
    cache: Path, tmp_path: Path, missing: tuple[str, ...], network: dict[str, str]
) -> None:
    record_missing(cache, *missing)
    ended = train("me/tiny", tmp_path, HF_HUB_CACHE=str(cache.parent), **network)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("network", [OFFLINE, UNREACHABLE], ids=["offline", "unreachable"])
def test_cached_vocab_and_merges_are_a_tokenizer(cache: Path, tmp_path: Path, network: dict[str, str]) -> None:
    snapshot = cache / "snapshots" / REVISION
    model = json.loads((snapshot / "tokenizer.json").read_text("utf-8"))["model"]
    (snapshot / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (snapshot / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])), "utf-8")
    (snapshot / "tokenizer.json").unlink()
    ended = train("me/tiny", tmp_path, HF_HOME=str(cache.parent.parent), **network)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_variable_that_forbids_the_network_is_named(variable: str, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_ENDPOINT": NOWHERE, variable: "1"}
    refused = train("me/none", tmp_path, HF_HOME=str(tmp_path), **env)
    assert_refused(refused, f"{variable} is set", field="init_from", value="me/none")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((f"{site}me/tiny", "me/tiny") for site in ("https://huggingface.co/", "hf.co/", "hf://", "git@hf.co:")),
        *((f"https://huggingface.co/me/tiny{rest}", "me/tiny") for rest in ("/", "/tree/main", ".git", "?a=1")),
        ("https://huggingface.co/gpt2", "gpt2"),
        ("hf://me/tiny@main", "me/tiny"),
        ("me/tiny/", "me/tiny"),
        ("gpt2/", "gpt2"),
        ("models--me--tiny", "me/tiny"),
        ("models--gpt2", "gpt2"),
        *((other, None) for other in ("me/tiny", "gpt2", "../x/", "/gpt2/", "https://example.com/me", "a/b/c", "")),
        ("https://huggingface.co/datasets/me/texts", None),
    ],
)
def test_the_name_in_an_address_of_the_hub(typed: str, name: str | None) -> None:
    assert name_in(typed) == name
    assert name is None or (is_name(name) and not is_name(typed))


@pytest.mark.parametrize("typed", ["https://huggingface.co/me/tiny", "me/tiny/", "models--me--tiny"])
def test_an_address_comes_with_the_name_to_type(typed: str, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    refused = train(typed, tmp_path, **env)
    assert_refused(refused, f"{typed}:", "init_from=me/tiny ")
    refused = train("none", tmp_path, "tokenizer=gpt2", f"tokenizer.path={typed}", **env)
    assert_refused(refused, "tokenizer.path=me/tiny,", field="tokenizer.path", value=typed)


class Recorder(http.server.BaseHTTPRequestHandler):
    """A server that records every request."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def server(requests: list[str]) -> Iterator[str]:
    with serving(Recorder, requests=requests) as address:
        yield address


def test_offline_means_no_request_at_all(cache: Path, tmp_path: Path, server: str, requests: list[str]) -> None:
    env = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert train("me/tiny", tmp_path, **env).code == 0
    for name, file in (("me/other", "config.json"), ("me/tiny", "model-00002-of")):
        for part in cache.rglob("model-00002-of*"):
            part.unlink()
        refused = train(name, tmp_path / "other", **env)
        assert_refused(refused, file, "HF_HUB_OFFLINE", tmp_path / "hub", field="init_from", value=name)
    assert requests == []
    train("me/other", tmp_path / "other", **{**env, "HF_HUB_OFFLINE": "0"})
    assert requests, "otherwise nothing was tested"


@pytest.mark.parametrize("is_recorded", [True, False])
def test_an_adapter_on_the_hub_is_called_one(cache: Path, tmp_path: Path, is_recorded: bool) -> None:
    snapshot = cache / "snapshots" / REVISION
    (snapshot / "config.json").unlink()
    (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}', "utf-8")
    if is_recorded:
        record_missing(cache, "config.json")
    refused = train("me/tiny", tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert_refused(refused, "me/tiny", "peft adapter", "some/base")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A stand-in for the hub that records what is asked of it, and has nothing."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("field", ["init_from", "tokenizer.path"])
def test_a_model_that_only_a_file_names_is_not_asked_for(field: str, tmp_path: Path) -> None:
    recipe = tmp_path / "presets" / "experiment" / "theirs.yaml"
    recipe.parent.mkdir(parents=True)
    value = "init_from: me/other" if field == "init_from" else "tokenizer: {name: gpt2, path: me/other}"
    recipe.write_text(f"# @package _global_\n{value}\n", "utf-8")
    words = [f"--config-dir={recipe.parents[1]}", "experiment=theirs"]
    words += ["tokenizer=gpt2"] if field != "init_from" else []
    asked: list[str] = []
    with serving(Refusing, asked=asked) as address:
        env = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
        assert_refused(train("", tmp_path, *words, **env), "me/other is named by a file", f"add {field}=me/other")
        assert asked == []
        refused = train("", tmp_path, *words, f"{field}=me/other", **env)
        assert_refused(refused, f"{field}=me/other")
        assert asked != []


def test_the_rest_of_a_model_that_only_a_file_names_is_not_asked_for(
    cache: Path, tmp_path: Path, server: str, requests: list[str]
) -> None:
    recipe = tmp_path / "presets" / "experiment" / "me" / "tiny.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\ninit_from: me/tiny\n", "utf-8")
    words = (f"--config-dir={tmp_path / 'presets'}", "experiment=me/tiny")
    env = {"HF_HUB_CACHE": str(cache.parent), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": server}
    assert train("", tmp_path, *words, **env).code == 0, "all of it is in the cache"
    shutil.rmtree(tmp_path / "run")
    requests.clear()
    for part in cache.rglob("model-00002-of*"):
        part.unlink()
    assert_refused(train("", tmp_path, *words, **env), "me/tiny is named by a file", "add init_from=me/tiny")
    assert requests == []
    assert_refused(train("", tmp_path, *words, "init_from=me/tiny", **env), "init_from=me/tiny")
    assert requests, "otherwise nothing was tested"
