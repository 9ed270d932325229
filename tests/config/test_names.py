"""Tests of the names of fields, and of those that a user may have meant."""

from __future__ import annotations

from bigramlm.config.names import names_of, nearest, proposals


def test_every_field_is_its_own_nearest_name() -> None:
    names = names_of()
    assert len(names) > 80
    for name in names:
        assert nearest(name, names)[0] == name
        assert not name.startswith("hydra")


def test_a_group_or_a_field_beside_it_is_not_meant() -> None:
    names = names_of()
    assert proposals("optim.foo", "1", names) == []
    assert proposals("logger.entity", "x", names) == []
    assert proposals("modle", "gpt", names) == ["model=gpt"]
    assert proposals("optim.bf16", "true", names) == ["device.precision=bf16"]
    assert proposals("bf16", "true", ["max_new_tokens"]) == []
