"""Tests of Overrides: quoting, lookup and filtering."""

import pytest
from hydra.core.override_parser.types import Transformer
from hydra.errors import OverrideParseException

from bigramlm.config.overrides import Overrides, sets_a_field


def test_last_value_of_a_field_wins() -> None:
    overrides = Overrides(["optim.lr=1e-3", "seed=1", "+optim.lr=0.01"])
    assert overrides.get("optim.lr") == "0.01"
    assert overrides.values() == {"optim.lr": "0.01", "seed": "1"}
    assert overrides.get("model") is None
    assert overrides.get("model", "bigram") == "bigram"


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
def test_override_is_split_into_field_and_value(word: str, field: str, value: str) -> None:
    (found,) = Overrides([word])
    assert found == (word, field, value)


def test_arguments_without_a_value_are_not_fields() -> None:
    """Examples are the arguments of Hydra's flags, and deletions like ~model."""
    overrides = Overrides(["--cfg", "job", "-p", "optim", "~model", "seed=1"])
    assert overrides.values() == {"seed": "1"}
    assert not overrides.has("optim", "model")
    assert overrides.without("seed").words == ["--cfg", "job", "-p", "optim", "~model"]


def test_malformed_override_is_kept_and_refused_by_hydra() -> None:
    overrides = Overrides(["optim.lr=(", "seed=1"])
    assert overrides.words == ["optim.lr=(", "seed=1"]
    assert overrides.get("optim.lr") == "("
    with pytest.raises(OverrideParseException):
        overrides.parsed()


def test_has_and_touches() -> None:
    overrides = Overrides(["tokenizer.vocab_size=300", "model=gpt", "data.block_size=8"])
    assert overrides.has("model")
    assert overrides.has("seed", "data.block_size")
    assert not overrides.has("tokenizer", "data")
    assert overrides.touches("tokenizer")
    assert overrides.touches("model")
    assert not overrides.touches("optim")


def test_filtering() -> None:
    overrides = Overrides(["base=a", "seed=1", "+base=b", "model=_saved", "model.size=_saved"])
    assert overrides.only("base").words == ["base=a", "+base=b"]
    assert overrides.without("base", "seed").words == ["model=_saved", "model.size=_saved"]
    assert overrides.without_choice("_saved").words == ["base=a", "seed=1", "+base=b", "model.size=_saved"]
    assert overrides.without("base") + overrides.only("base") == Overrides(
        [*overrides.words[1:2], *overrides.words[3:], *overrides.words[:3:2]]
    )


def test_split_after() -> None:
    overrides = Overrides(["seed=1", "init_from=a", "experiment=quick", "seed=2"])
    first, rest = overrides.split_after("init_from", "experiment")
    assert (first.words, rest.words) == (overrides.words[:3], overrides.words[3:])
    first, rest = overrides.split_after("resume")
    assert (first.words, rest.words) == (overrides.words[:1], overrides.words[1:])


def test_free_text_is_quoted_except_null_and_swept_lists() -> None:
    assert Overrides.typed(["sample.prompt=To be, or"]).words == ['sample.prompt="To be, or"']
    assert Overrides.typed(["sample.prompt=null", "resume=null"]).words == ['sample.prompt="null"', "resume=null"]
    listed = 'sample.prompt="To be","Or not"'
    assert Overrides.typed([listed], sweeps=True).words == [listed]
    assert Overrides.typed([listed]).get("sample.prompt") == '"To be","Or not"'
    assert Overrides.typed(["prompt=a, b", "run=c"], ["prompt"]).words == ['prompt="a, b"', "run=c"]


@pytest.mark.parametrize(
    ("listed", "texts"),
    [
        ('"a","b"', ["a", "b"]),
        ("'a' , \"b\"", ["a", "b"]),
        ('"a, b","\\"c\\""', ["a, b", '"c"']),
        ('"${x}","$y"', ["${x}", "$y"]),
    ],
)
def test_swept_texts_are_taken_literally(listed: str, texts: list[str]) -> None:
    (parsed,) = Overrides.typed([f"sample.prompt={listed}"], sweeps=True).parsed()
    found = [Overrides([f"sample.prompt={word}"]) for word in parsed.sweep_iterator(transformer=Transformer.encode)]
    assert [overrides.get("sample.prompt") for overrides in found] == texts


def test_from_arguments_drops_flags() -> None:
    assert Overrides.from_arguments(["--help", "seed=1", "-m", "~optim", "--cfg", "job", "+a=b"]).words == [
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
def test_sets_a_field(word: str, sets: bool) -> None:
    (parsed,) = Overrides([word]).parsed()
    assert sets_a_field(parsed) is sets


def test_overrides_can_be_typed_again() -> None:
    typed = ['name=a "first" try, \\', "sample.prompt=To be, or\nnot ${x}", "optim.lr=1e-3", "++data.path=my file.txt"]
    overrides = Overrides.typed([*typed, "model=gpt", "resume=null", "~optim"])
    assert overrides.as_typed() == [*typed, "model=gpt", "resume=null", "~optim"]
    assert Overrides.typed(overrides.as_typed()) == overrides
