"""Property tests: quoting, config differences, blocks, checkpoint names."""

import json
import tempfile
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import differences, flat
from bigramlm.data.batches import blocks
from bigramlm.trainer.compiled import MAX_STEPS_PER_CALL, SharedCalls
from bigramlm.utils.paths import step_of

# Special characters of Hydra's grammar and of OmegaConf's references, which are rare in random text.
TEXT = st.text(st.one_of(st.sampled_from("\\\"'${}[]()=,:!#%~@&?*+ \t\n"), st.characters(codec="utf-8")))
NAMES = st.sampled_from(["a", "b", "c", "d"])
CONFIGS = st.recursive(
    st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.lists(st.integers())),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1),
).flatmap(lambda value: st.just(value if isinstance(value, dict) else {"a": value}))


def parsed(override: str) -> str:
    """Return the value of an override, parsed by Hydra and resolved by OmegaConf."""
    value = OverridesParser.create().parse_override(override).value()
    found = OmegaConf.create({"field": value}).field
    assert isinstance(found, str)
    return found


@given(text=TEXT)
def test_quoted_text_is_parsed_unchanged(text: str) -> None:
    assert parsed(f"field={quoted(text)}") == text


@given(text=TEXT, sign=st.sampled_from(["", "+", "++"]))
def test_only_free_text_fields_are_quoted(text: str, sign: str) -> None:
    (word,) = Overrides.typed([f"{sign}sample.prompt={text}"], ["sample.prompt"])
    assert parsed(word.text) == text
    assert (word.field, word.value) == ("sample.prompt", text)
    for other in (f"{sign}sample.prompts={text}", f"{sign}sampleXprompt={text}"):
        assert Overrides.typed([other], ["sample.prompt"]).words == [other]


@given(a=CONFIGS, b=CONFIGS)
def test_differences_convert_one_config_into_the_other(a: dict[str, object], b: dict[str, object]) -> None:
    assert differences(a, a) == []
    found = differences(a, b)
    assert sorted(name for name, _, _ in found) == sorted(name for name, _, _ in differences(b, a))
    flat_a, flat_b = flat(a), flat(b)
    for name, value_a, value_b in found:
        assert (flat_a.get(name), flat_b.get(name)) == (value_a, value_b)
        flat_a[name] = value_b
    assert {name: value for name, value in flat_a.items() if value is not None} == flat_b


@given(
    log_every=st.integers(1, 130),
    intervals=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    alone_every=st.integers(0, 60),
)
def test_no_call_crosses_an_interval(log_every: int, intervals: list[int], alone_every: int) -> None:
    """Check that a resumed run makes the same calls as an uninterrupted run."""
    steps_per_call = SharedCalls(log_every=log_every, intervals=intervals, alone_every=alone_every)
    first, starts = 0, list[int]()
    assert 1 <= steps_per_call.max_steps <= MAX_STEPS_PER_CALL
    while first < 400:
        starts.append(first)
        n = steps_per_call(first)
        assert n == 1 or first % log_every, "a logged step does not share its call"
        alone = [step for step in range(first, first + n) if alone_every and step % alone_every == 0]
        assert n == 1 or not alone, "neither does a step whose vital signs are measured"
        assert not [step for step in range(first + 1, first + n) if any(step % every == 0 for every in intervals)]
        first += n
    # A call begins at every multiple of an interval, so a run can resume from a checkpoint saved there.
    assert {step for step in range(400) if any(step % every == 0 for every in (*intervals, log_every))} <= {*starts}


@given(n=st.integers(2, 400), block_size=st.integers(1, 40))
def test_blocks_contain_every_target_once(n: int, block_size: int) -> None:
    if n <= block_size:
        return
    tokens = torch.arange(n)
    inputs = torch.cat([x.flatten() for x, _ in blocks(tokens, block_size=block_size)])
    targets = torch.cat([y.flatten() for _, y in blocks(tokens, block_size=block_size)])
    assert torch.equal(inputs, tokens[:-1])
    assert torch.equal(targets, tokens[1:])


@given(n=st.integers(2, 400), block_size=st.integers(1, 40), limit=st.integers(1, 30))
def test_limited_blocks_are_spread_evenly_without_overlap(n: int, block_size: int, limit: int) -> None:
    if n <= block_size:
        return
    tokens, n_full = torch.arange(n), (n - 1) // block_size
    batches = blocks(tokens, block_size=block_size, limit=limit)
    if limit >= n_full:
        assert sum(len(x) for x, _ in batches) == n_full + ((n - 1) % block_size > 0)
        return
    ((x, y),) = batches
    assert x.shape == y.shape == (limit, block_size)
    assert torch.equal(y, x + 1)
    assert bool((x[1:, 0] >= x[:-1, 0] + block_size).all()), "no block overlaps the previous block"
    assert x[0, 0] == 0
    assert limit == 1 or y[-1, -1] == n - 1, "the last block ends at the last token"


@given(step=st.integers(0, 10**12))
def test_step_of_parses_checkpoint_names(step: int) -> None:
    assert step_of(f"step_{step}") == step


@given(name=st.one_of(st.text(), st.from_regex(r"\Astep_[\w-]*\Z"), st.just("step_007"), st.just("step_٣")))
def test_step_of_rejects_other_names(name: str) -> None:
    step = step_of(name)
    assert step is None or f"step_{step}" == name


@given(steps=st.sets(st.integers(0, 99)), others=st.sets(st.sampled_from(["step_", "step_07", "step_٣", "step_1.tmp"])))
def test_a_run_lists_only_its_checkpoints(steps: set[int], others: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in {f"step_{step}" for step in steps} | others:
            (Path(folder) / name).mkdir()
        (Path(folder) / "last").write_text(json.dumps(None))
        assert Checkpoints(Path(folder)).steps() == sorted(steps)
