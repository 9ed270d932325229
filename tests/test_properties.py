"""What holds whatever is given: quoting, differences of configs, evaluation blocks, names of checkpoints."""

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
from bigramlm.trainer.step import STEPS_PER_CALL_AT_MOST, SharedCalls
from bigramlm.utils.paths import step_of

# Hydra's grammar and OmegaConf's references each have characters of their own, which are rare in text drawn at random.
TEXT = st.text(st.one_of(st.sampled_from("\\\"'${}[]()=,:!#%~@&?*+ \t\n"), st.characters(codec="utf-8")))
NAMES = st.sampled_from(["a", "b", "c", "d"])
CONFIGS = st.recursive(
    st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.lists(st.integers())),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1),
).flatmap(lambda value: st.just(value if isinstance(value, dict) else {"a": value}))


def parsed(override: str) -> str:
    """Return the value that an override gives its field, by Hydra's parser and OmegaConf's references."""
    value = OverridesParser.create().parse_override(override).value()
    found = OmegaConf.create({"field": value}).field
    assert isinstance(found, str)
    return found


@given(text=TEXT)
def test_quoted_text_arrives_as_it_stands(text: str) -> None:
    assert parsed(f"field={quoted(text)}") == text


@given(text=TEXT, sign=st.sampled_from(["", "+", "++"]))
def test_only_fields_of_free_text_are_quoted(text: str, sign: str) -> None:
    (word,) = Overrides.typed([f"{sign}sample.prompt={text}"], ["sample.prompt"])
    assert parsed(word.text) == text
    assert (word.field, word.value) == ("sample.prompt", text)
    for other in (f"{sign}sample.prompts={text}", f"{sign}sampleXprompt={text}"):
        assert Overrides.typed([other], ["sample.prompt"]).words == [other]


@given(a=CONFIGS, b=CONFIGS)
def test_differences_are_what_makes_one_config_of_the_other(a: dict[str, object], b: dict[str, object]) -> None:
    assert differences(a, a) == []
    found = differences(a, b)
    assert sorted(name for name, _, _ in found) == sorted(name for name, _, _ in differences(b, a))
    one, other = flat(a), flat(b)
    for name, there, here in found:
        assert (one.get(name), other.get(name)) == (there, here)
        one[name] = here
    assert {name: value for name, value in one.items() if value is not None} == other


@given(log_every=st.integers(1, 130), looks=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_no_call_is_shared_across_a_look(log_every: int, looks: list[int]) -> None:
    """From wherever a run resumes, it takes the calls of one that was not interrupted."""
    steps_per_call, first, begun = SharedCalls(log_every=log_every, looks=looks), 0, []
    assert 1 <= steps_per_call.most <= STEPS_PER_CALL_AT_MOST
    while first < 400:
        begun.append(first)
        n = steps_per_call(first)
        assert n == 1 or first % log_every, "a step that is recorded is taken alone"
        assert not [step for step in range(first + 1, first + n) if any(step % every == 0 for every in looks)]
        first += n
    # Every look is where a call begins: what is saved there, or where a call ends, can be resumed from.
    assert {step for step in range(400) if any(step % every == 0 for every in (*looks, log_every))} <= {*begun}


@given(n=st.integers(2, 400), block_size=st.integers(1, 40))
def test_blocks_have_every_target_once_after_what_comes_before_it(n: int, block_size: int) -> None:
    if n <= block_size:
        return
    tokens = torch.arange(n)
    inputs = torch.cat([x.flatten() for x, _ in blocks(tokens, block_size=block_size)])
    targets = torch.cat([y.flatten() for _, y in blocks(tokens, block_size=block_size)])
    assert torch.equal(inputs, tokens[:-1])
    assert torch.equal(targets, tokens[1:])


@given(n=st.integers(2, 400), block_size=st.integers(1, 40), limit=st.integers(1, 30))
def test_a_limit_spreads_whole_blocks_from_end_to_end_without_overlap(n: int, block_size: int, limit: int) -> None:
    if n <= block_size:
        return
    tokens, whole = torch.arange(n), (n - 1) // block_size
    covered = blocks(tokens, block_size=block_size, limit=limit)
    if limit >= whole:
        assert sum(len(x) for x, _ in covered) == whole + ((n - 1) % block_size > 0)
        return
    ((x, y),) = covered
    assert x.shape == y.shape == (limit, block_size)
    assert torch.equal(y, x + 1)
    assert bool((x[1:, 0] >= x[:-1, 0] + block_size).all()), "none overlaps the one before"
    assert x[0, 0] == 0
    assert limit == 1 or y[-1, -1] == n - 1, "up to the last token"


@given(step=st.integers(0, 10**12))
def test_a_checkpoints_name_tells_its_step(step: int) -> None:
    assert step_of(f"step_{step}") == step


@given(name=st.one_of(st.text(), st.from_regex(r"\Astep_[\w-]*\Z"), st.just("step_007"), st.just("step_٣")))
def test_any_other_name_tells_none(name: str) -> None:
    step = step_of(name)
    assert step is None or f"step_{step}" == name


@given(steps=st.sets(st.integers(0, 99)), others=st.sets(st.sampled_from(["step_", "step_07", "step_٣", "step_1.tmp"])))
def test_a_run_lists_its_checkpoints_and_nothing_else(steps: set[int], others: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in {f"step_{step}" for step in steps} | others:
            (Path(folder) / name).mkdir()
        (Path(folder) / "last").write_text(json.dumps(None))
        assert Checkpoints(Path(folder)).steps() == sorted(steps)
