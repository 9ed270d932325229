"""Tests of progress bars: their texts, and when they are drawn."""

import io
from typing import Any

import pytest

from bigramlm.utils.progress import LazyText, bar, labelled


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


class Terminal(io.StringIO):
    """A terminal that keeps what is drawn."""

    def isatty(self) -> bool:
        return True


def test_a_lazy_text_is_made_only_when_the_bar_is_drawn() -> None:
    texts = iter(f", loss {n}" for n in range(10))
    made: list[str] = []

    def make() -> str:
        made.append(next(texts))
        return made[-1]

    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        made.clear()
        with bar(100, bar_format="{n_fmt}{postfix}", file=stream, mininterval=1e9) as progress:
            progress.postfix = LazyText(make)
            for _ in range(50):
                progress.update()
            assert made == [], "no time has passed"
            progress.refresh()
            assert bool(made) == drawn
        assert (", loss " in stream.getvalue()) == drawn


def test_bars_have_the_label_of_the_block() -> None:
    def drawn(**options: Any) -> str:
        stream = Terminal()
        bar(3, file=stream, **options).close()
        return stream.getvalue()

    with labelled("job 3/12"):
        assert "job 3/12:   0%" in drawn()
        assert "job" not in drawn(desc="encoding"), "it has a text of its own"
    assert "job" not in drawn()
