"""Progress bars: on standard error, where that is a terminal."""

import os
from typing import Any

from tqdm import tqdm


def bar(total: int, *, hidden: bool = False, **shown: Any) -> "tqdm[Any]":
    """Make a bar that leaves nothing behind; shown: what else tqdm takes.

    TQDM_DISABLE hides it: jobs of a sweep that run at the same time would write over each other.
    """
    disable = True if hidden or os.environ.get("TQDM_DISABLE") else None  # None: where standard error is no terminal
    return tqdm(total=total, disable=disable, leave=False, dynamic_ncols=True, **shown)
