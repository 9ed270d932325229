"""Overrides: quoting, and the questions that the rest of the program asks of what was typed."""

import pytest
from hydra.errors import OverrideParseException

from bigramlm.config.overrides import Overrides, sets_a_field


def test_the_last_value_of_a_field_counts() -> None:
    typed = Overrides(["optim.lr=1e-3", "seed=1", "+optim.lr=0.01"])
    assert typed.get("optim.lr") == "0.01"
    assert typed.values() == {"optim.lr": "0.01", "seed": "1"}
    assert typed.get("model") is None
    assert typed.get("model", "bigram") == "bigram"


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", "1e-3"),
        ("++optim.lr=1e-3", "optim.lr", "1e-3"),
        ("~optim", "", ""),
        ("~optim=adamw", "", ""),
        ("-p", "", ""),
        ("optim", "", ""),
        ("hydra/launcher=joblib", "hydra/launcher", "joblib"),
        ("seed=1,2", "seed", "1,2"),
        ("seed=range(0,3)", "seed", "range(0,3)"),
        ("tokenizer.path=null", "tokenizer.path", "null"),
        ("model.targets=[a,b]", "model.targets", "[a,b]"),
        ('sample.prompt="a, \\"b\\""', "sample.prompt", 'a, "b"'),
        ("sample.prompt='it'", "sample.prompt", "it"),
        ('sample.prompt="\\${x}"', "sample.prompt", "${x}"),
        ('sample.prompt="To be","Or not"', "sample.prompt", '"To be","Or not"'),
    ],
)
def test_a_word_is_a_field_and_a_value(word: str, field: str, value: str) -> None:
    (found,) = Overrides([word])
    assert found == (word, field, value)


def test_what_gives_no_value_is_no_field() -> None:
    """Such as the arguments of Hydra's own flags, and what leaves something out."""
    typed = Overrides(["--cfg", "job", "-p", "optim", "~model", "seed=1"])
    assert typed.values() == {"seed": "1"}
    assert not typed.has("optim", "model")
    assert typed.without("seed").words == ["--cfg", "job", "-p", "optim", "~model"]


def test_a_word_that_is_no_override_is_kept_and_refused_by_hydra() -> None:
    typed = Overrides(["optim.lr=(", "seed=1"])
    assert typed.words == ["optim.lr=(", "seed=1"]
    assert typed.get("optim.lr") == "("
    with pytest.raises(OverrideParseException):
        typed.parsed()


def test_fields_and_groups_are_asked_for() -> None:
    typed = Overrides(["tokenizer.vocab_size=300", "model=gpt", "data.block_size=8"])
    assert typed.has("model")
    assert typed.has("seed", "data.block_size")
    assert not typed.has("tokenizer", "data")
    assert typed.touches("tokenizer")
    assert typed.touches("model")
    assert not typed.touches("optim")


def test_some_are_taken_and_some_left_out() -> None:
    typed = Overrides(["base=a", "seed=1", "+base=b", "model=_saved", "model.size=_saved"])
    assert typed.only("base").words == ["base=a", "+base=b"]
    assert typed.without("base", "seed").words == ["model=_saved", "model.size=_saved"]
    assert typed.without_choice("_saved").words == ["base=a", "seed=1", "+base=b", "model.size=_saved"]
    assert typed.without("base") + typed.only("base") == Overrides(
        [*typed.words[1:2], *typed.words[3:], *typed.words[:3:2]]
    )


def test_a_list_is_cut_behind_the_last_of_some() -> None:
    typed = Overrides(["seed=1", "init_from=a", "experiment=quick", "seed=2"])
    first, rest = typed.after("init_from", "experiment")
    assert (first.words, rest.words) == (typed.words[:3], typed.words[3:])
    first, rest = typed.after("resume")
    assert (first.words, rest.words) == (typed.words[:1], typed.words[1:])


def test_free_text_is_quoted_but_where_it_is_null_or_a_list_of_a_sweep() -> None:
    assert Overrides.typed(["sample.prompt=To be, or"]).words == ['sample.prompt="To be, or"']
    assert Overrides.typed(["sample.prompt=null", "resume=null"]).words == ['sample.prompt="null"', "resume=null"]
    listed = 'sample.prompt="To be","Or not"'
    assert Overrides.typed([listed], sweeps=True).words == [listed]
    assert Overrides.typed([listed]).get("sample.prompt") == '"To be","Or not"'
    assert Overrides.typed(["prompt=a, b", "run=c"], ["prompt"]).words == ['prompt="a, b"', "run=c"]


def test_overrides_are_found_among_flags() -> None:
    assert Overrides.among(["--help", "seed=1", "-m", "~optim", "--cfg", "job", "+a=b"]).words == [
        "seed=1",
        "~optim",
        "+a=b",
    ]


@pytest.mark.parametrize(
    ("word", "sets"),
    [
        *[("optim.lr=1", True), ("seed=1,2", True), ("hydra.sweep.dir=x", True)],
        *[("model=gpt", False), ("+optim.lr=1", False), ("++seed=1", False), ("~optim.lr", False)],
        *[("hydra/launcher=joblib", False), ("experiment=quick", False)],
    ],
)
def test_what_chooses_groups_is_told_from_what_sets_a_field(word: str, sets: bool) -> None:
    (parsed,) = Overrides([word]).parsed()
    assert sets_a_field(parsed) is sets
