"""Tests of the content of the page, for every preset and for odd texts."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigramlm.device.config import DeviceConfig
from bigramlm.engine.load import open_checkpoint
from bigramlm.look.gather import gather, kind_of
from bigramlm.look.subject import Subject, open_subject, read_corpus
from tests.helpers import PRESETS, command, gpts, refuses
from tests.look.helpers import WORDS

SubjectOf = Callable[..., Subject]


def numbers(encoded: str) -> Any:
    """Return the numbers between 0 and 1 that a text of the page encodes."""
    return np.frombuffer(base64.b64decode(encoded), np.uint8) / 255


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_sections_of_its_parts(subject_of: SubjectOf, preset: str) -> None:
    subject = subject_of(preset)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    content = gather(subject, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())

    values = content.values
    json.dumps(values, allow_nan=False)
    present = {name for name, value in values.items() if value is not None}
    always = {"passage", "worst", "table", "sampling", "tokens", "kinds"}
    trained = set() if preset == "ngram" else {"weights", "embedding", "history"}
    layered = (
        {"attention", "lens", "activations"} if preset in gpts() else {"activations"} if preset == "mlp" else set()
    )
    assert present == always | trained | layered
    assert any("has no attention" in note for note in content.notes) == (preset not in gpts())
    n = len(values["tokens"])
    mentioned = [*values["passage"]["ids"], *values["table"]["tokens"], *values["sampling"]["ids"]]
    assert max(mentioned) < n == len(values["kinds"])
    assert values["worst"]["places"][0]["surprise"] >= values["worst"]["places"][-1]["surprise"]


def test_the_numbers_of_the_page_are_those_of_the_model(subject_of: SubjectOf) -> None:
    subject = subject_of("gpt")
    content = gather(subject, subject.tokenizer.encode("First Citizen").tolist())
    values = content.values
    text = "".join(values["tokens"][at] for at in values["passage"]["ids"])
    assert text == "First Citizen"
    idx = torch.tensor([content.passage.ids[: subject.model.block_size]])
    attention = subject.model.attention(idx)
    T = idx.shape[1]
    shown = numbers(values["attention"]["weights"][1][0]).reshape(T, T)
    assert shown == pytest.approx(attention[1][0, 0].detach().numpy(), abs=0.003)
    assert values["lens"]["surprise"][-1][:3] == values["passage"]["surprise"][1:4]
    best = [row[0][0] for row in values["lens"]["top"][-1]]
    assert best == [row[0] for row in values["sampling"]["tokens"]]
    logits = subject.logits(idx)[0]
    assert values["sampling"]["logits"][2][0] == pytest.approx(float(logits[2].max()), rel=1e-3)
    assert values["history"]["steps"] == [10, 20]
    assert values["history"]["surprise"][-1] == values["passage"]["surprise"]
    assert values["history"]["table"][-1] == values["table"]["model"]
    assert values["history"]["embedding"][-1]["x"] == values["embedding"]["x"]


def test_the_tail_of_a_large_vocabulary_has_its_probability(subject_of: SubjectOf) -> None:
    subject = subject_of("bigram", "tokenizer=bpe", "tokenizer.vocab_size=300")
    values = gather(subject, [1, 2]).values["sampling"]
    p = subject.logits(torch.tensor([[1, 2]]))[0].softmax(-1)
    for at in (0, 1):
        kept = np.exp(values["logits"][at])
        tail = np.array(values["tail"][at])
        assert len(kept) == 100
        assert tail[:, 1].sum() == 200
        total = kept.sum() + (np.exp(tail[:, 0]) * tail[:, 1]).sum()
        assert kept[0] / total == pytest.approx(float(p[at].max()), rel=1e-3)


def test_an_adapter_is_looked_at_with_its_base(run_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    ended = command(*WORDS, f"init_from={run_of('gpt')}", "adapter=lora", "adapter.r=2", f"hydra.run.dir={folder}")
    assert ended.code == 0, ended.err
    values = gather(open_subject(open_checkpoint(str(folder)), DeviceConfig(name="cpu")), None).values
    absent = {name for name, value in values.items() if value is None}
    assert absent == {"compare", "history"}, "the weights of an adapter's checkpoints are not those of the model"


def test_without_the_text_counts_are_left_out_and_a_passage_is_needed(
    subject_of: SubjectOf, tmp_path: Path, text_file: Path
) -> None:
    subject = subject_of("bigram", "data=text", f"data.path={text_file}")
    original = text_file.read_text("utf-8")
    for change in (lambda: text_file.write_text(original + "!", "utf-8"), text_file.unlink):
        change()
        content = gather(subject, [1, 2, 3])
        assert content.values["worst"] is None
        assert content.values["table"]["counts"] is None
        assert content.values["passage"]["ngram"] is None
        assert str(text_file.name) in content.notes[0]
        with refuses("prompt=TEXT"):
            gather(subject, None)
    text_file.write_text(original, "utf-8")


@pytest.mark.parametrize(
    "text", ["\U0001f600e\u0301x", "\u05e9\u05dc\u05d5\u05dd ab", "a\x1b[31m\x00\u202eb", "\n\n", "x"]
)
def test_texts_of_any_script_are_shown(subject_of: SubjectOf, text: str) -> None:
    subject = subject_of("bigram", "tokenizer=byte")
    content = gather(subject, subject.tokenizer.encode(text).tolist())
    shown = "".join(content.values["tokens"])
    json.dumps(content.values, allow_nan=False)
    assert not {"\x1b", "\x00", "\u202e"} & {*shown}
    assert len(content.values["passage"]["ids"]) == len(text.encode())


def test_the_difference_to_another_run(subject_of: SubjectOf) -> None:
    one, other = subject_of("bigram"), subject_of("gpt")
    values = gather(one, read_corpus(one).ids["val"][:20].tolist(), other).values
    assert values["compare"]["label"] == other.label
    total = values["compare"]["own_loss"] - values["compare"]["loss"]
    assert sum(values["passage"]["difference"][1:]) == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("e", "vowel"), ("É", "capital"), ("é", "vowel"), ("t", "consonant"), (" th", "consonant"), ("Q", "capital")),
        *(("7", "digit"), ("\n", "space"), (" ", "space"), ("!", "punctuation"), ("+", "punctuation"), ("", "space")),
        *(("\u05e9", "consonant"), ("[17]", "punctuation"), ("\U0001f600", "punctuation")),
    ],
)
def test_kinds_of_tokens(text: str, kind: str) -> None:
    assert kind_of(text) == kind
