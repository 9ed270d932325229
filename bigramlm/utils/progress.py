"""Progress bars, shown only in a notebook or if standard error is a terminal."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm


@dataclass
class LazyText:
    """A text at the end of a bar that is made only when the bar is drawn."""

    make: Callable[[], str]

    def __str__(self) -> str:
        return self.make()


@contextlib.contextmanager
def labelled(text: str) -> Iterator[None]:
    """Show a text before the bars of the block, such as `job 3/12`.

    A bar with a text of its own keeps it.
    """
    _labels.append(text)
    try:
        yield
    finally:
        _labels.pop()


_labels: list[str] = []


def bar(total: int, *, hidden: bool = False, **options: Any) -> "tqdm[Any]":
    """Build a progress bar that is erased when the bar is closed.

    hidden: if True, the bar is not shown. options: additional arguments of tqdm. The environment variable TQDM_DISABLE
    also hides the bar. Sweeps set the variable for their workers, because the bars of concurrent jobs would overwrite
    each other.
    """
    if _labels:
        options.setdefault("desc", _labels[-1])
    if hidden or os.environ.get("TQDM_DISABLE"):
        return tqdm(total=total, disable=True, **options)
    if not _is_notebook():
        return tqdm(total=total, disable=None, leave=False, dynamic_ncols=True, **options)  # None: only on a terminal
    if importlib.util.find_spec("ipywidgets") is None:
        return tqdm(total=total, leave=False, ncols=100, **options)
    from tqdm.notebook import tqdm as widget

    return widget(total=total, leave=False, **options)


def _is_notebook() -> bool:
    # IPython on a terminal has a shell of a different class.
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
