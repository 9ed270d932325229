"""Fixtures of the tests of the report: a browser."""

from collections.abc import Iterator

import pytest

from bigramlm.dev.browser import Browser, browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser(width=1280, height=2400) as opened:
        yield opened
