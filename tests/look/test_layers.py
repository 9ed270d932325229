"""Tests of the layers: the last lens is the output, and dead units are counted."""

from collections.abc import Callable

import pytest
import torch

from bigramlm.look import layers
from bigramlm.look.subject import Subject
from tests.helpers import PRESETS, gpts

SubjectOf = Callable[..., Subject]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_last_lens_is_the_output_of_the_model_bit_by_bit(subject_of: SubjectOf, preset: str) -> None:
    subject = subject_of(preset)
    idx = torch.arange(8)[None] % subject.model.vocab_size
    read = layers.lens(subject, idx)
    assert bool(read) == (preset in gpts())
    if read:
        assert torch.equal(read[-1], subject.logits(idx)[0])
        assert layers.state_names(len(read))[-1] == f"h.{len(read) - 2}"
        assert len(layers.stream_norms(subject, idx)) == len(read)


def test_units_that_never_fire_are_counted(subject_of: SubjectOf) -> None:
    subject = subject_of("gpt")
    idx = torch.arange(8)[None] % subject.model.vocab_size
    before = layers.hidden_units(subject, idx)
    assert [found.histogram.name for found in before] == ["h.0.mlp", "h.1.mlp"]
    layer = subject.model.get_submodule("h.1.mlp.c_fc")
    with torch.no_grad():
        n = layer.get_parameter("weight").shape[0]
        layer.get_parameter("weight")[: n // 4] = 0
    after = layers.hidden_units(subject, idx)
    assert after[1].never >= 0.25
    assert after[0].never == before[0].never
    assert sum(after[1].histogram.counts) == 8 * n


def test_histograms_count_every_element(subject_of: SubjectOf) -> None:
    subject = subject_of("gpt")
    found = {histogram.name: histogram for histogram in layers.weights(subject.model)}
    for name, p in subject.model.named_parameters():
        if p.ndim >= 2:
            assert sum(found[name].counts) == p.numel()
            assert found[name].std == pytest.approx(float(p.detach().std(correction=0)), rel=1e-4)
    constant = layers.Histogram.of("constant", torch.full((4,), 2.0))
    assert (constant.low, constant.high, constant.std) == (1.5, 2.5, 0)
