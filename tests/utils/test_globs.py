"""Tests of patterns: each file once, and loops of links do no harm."""

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.utils.globs import matching_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/x.txt", "a/b/y.txt", "a/.hidden/z.txt", "a/.z.txt", "c.md"):
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, "utf-8")
    return tmp_path / "t"


def found(folder: Path, pattern: str) -> list[str]:
    paths = [Path(os.path.normpath(path)) for path in matching_files(folder / pattern)]
    return [path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("links", "pattern", "expected"),
    [
        ({}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({}, "**", ["a/b/y.txt", "a/x.txt", "c.md"]),
        ({}, "a/*", ["a/x.txt"]),
        ({}, "a/.*", ["a/.z.txt"]),
        ({}, "*/*/[x-z].txt", ["a/b/y.txt"]),
        ({}, "nothing/*.txt", []),
        ({"loop": "."}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"a/loop": "..", "a/b/loop2": "../.."}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"0.txt": "a/x.txt"}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"0.txt": "a/x.txt"}, "*.txt", ["0.txt"]),
        ({"0": "a"}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"new": "a/b"}, "**/new/*.txt", ["new/y.txt"]),
        ({"a/up": "../.."}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"self.txt": "self.txt"}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({}, "../t/a/*.txt", ["a/x.txt"]),
        ({}, "../t/**/y.txt", ["a/b/y.txt"]),
        ({"0.txt": "nothing"}, "**/*.txt", ["a/b/y.txt", "a/x.txt"]),
        ({"p": "a", "a/q": "../p"}, "**/x.txt", ["a/x.txt"]),
    ],
)
def test_links_are_followed_and_each_file_is_found_once(
    links: dict[str, str], pattern: str, expected: list[str], tree: Path
) -> None:
    for name, target in links.items():
        (tree / name).symlink_to(target)
    (tree.parent / "outside.txt").touch()
    assert found(tree, pattern) == expected


def test_a_hard_link_is_the_same_file(tree: Path) -> None:
    os.link(tree / "a" / "x.txt", tree / "0.txt")
    assert found(tree, "**/*.txt") == ["0.txt", "a/b/y.txt"]


def test_brackets_that_are_escaped_are_literal(tree: Path) -> None:
    tree.rename(tree.with_name("t[1]*?"))
    moved = tree.with_name("t[1]*?")
    escaped = Path(glob.escape(str(moved)))
    assert [path.name for path in matching_files(escaped / "**" / "*.txt")] == ["y.txt", "x.txt"]


PARTS = st.sampled_from(["a", "b", "*", "**", "[ab]", "?", "*.t", "x.t", ".*"])


@given(pattern=st.lists(PARTS, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_without_links_the_files_are_those_of_the_standard_library(
    pattern: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "same"
    for name in ("a/x.t", "a/b/x.t", "a/b/a/y.t", "b/.h/x.t", "b/.x.t", "x.t"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    matches = glob.glob(str(root.joinpath(*pattern)), recursive=True)  # noqa: PTH207 - the reference
    # Some versions of the library find a file also by `FILE/**`, with a separator at the end.
    expected = sorted({Path(path) for path in matches if Path(path).is_file() and not path.endswith(os.sep)})
    assert matching_files(root.joinpath(*pattern)) == expected
