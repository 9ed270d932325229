"""Tests of the surprises: equality with evaluations and a plain computation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigramlm.look.subject import Subject, read_corpus, split_of
from bigramlm.look.surprise import ngram_surprise, predict, token_losses
from tests.helpers import PRESETS

SubjectOf = Callable[..., Subject]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_surprises_over_val_average_to_the_final_val_loss(
    subject_of: SubjectOf, run_of: Callable[..., Path], preset: str
) -> None:
    subject = subject_of(preset)
    val = split_of(subject, read_corpus(subject), "val")
    losses = token_losses(subject, val.blocks(limit=None))
    final = json.loads((run_of(preset) / "summary.json").read_text())["final"]["val/loss"]
    assert len(losses) == val.n_tokens - 1
    assert float(losses.double().mean()) == pytest.approx(final, abs=1e-6)


def test_only_the_targets_of_examples_are_counted(subject_of: SubjectOf, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"say {n} ", "completion": "abc" * (n % 9 + 1)}) + "\n" for n in range(1, 60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(lines), "utf-8")
    subject = subject_of("bigram", "data=pairs", f"data.path={path}", "data.block_size=64")
    val = split_of(subject, read_corpus(subject), "val")
    losses = token_losses(subject, val.blocks(limit=None))
    assert len(losses) == val.n_tokens
    assert subject.run_folder is not None
    final = json.loads((subject.run_folder / "summary.json").read_text())["final"]["val/loss"]
    assert float(losses.double().mean()) == pytest.approx(final, abs=1e-6)


def test_a_long_passage_is_predicted_in_windows_like_the_blocks_of_an_evaluation(subject_of: SubjectOf) -> None:
    subject = subject_of("gpt")
    block = subject.model.block_size
    ids = [int(token) for token in read_corpus(subject).ids["val"][: 2 * block + 3]]
    passage = predict(subject, ids)
    assert passage.starts == [0, block, 2 * block]
    assert passage.surprise[0].isnan()
    for at in range(1, len(ids)):
        start = (at - 1) // block * block
        logits = subject.logits(torch.tensor([ids[start:at]]))[0, -1]
        p = logits.softmax(-1)
        assert float(passage.surprise[at]) == pytest.approx(-float(p[ids[at]].log()), abs=1e-4)
        assert int(passage.rank[at]) == 1 + int((logits > logits[ids[at]]).sum())
        assert float(passage.probabilities[at, 0]) == pytest.approx(float(p.max()), abs=1e-5)
        assert passage.likeliest[at].tolist() == p.topk(5).indices.tolist()


def test_one_token_has_no_prediction(subject_of: SubjectOf) -> None:
    passage = predict(subject_of("bigram"), [3])
    assert passage.surprise.isnan().tolist() == [True]
    assert passage.starts == [0]


def test_the_ngram_of_the_text_gives_what_the_model_of_counts_gives(subject_of: SubjectOf) -> None:
    subject = subject_of("ngram", "model.order=5")
    corpus = read_corpus(subject)
    ids = [int(token) for token in corpus.ids["val"][:30]]
    train = split_of(subject, corpus, "train")
    found = ngram_surprise(subject, train.tokens, ids)
    assert found is not None
    torch.testing.assert_close(found, predict(subject, ids).surprise, equal_nan=True)
    assert ngram_surprise(subject, torch.zeros(1, dtype=torch.int64).expand(4_000_000), ids) is None, "too long"
