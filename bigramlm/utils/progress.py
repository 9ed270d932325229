"""Progress bars on standard error, if that is a terminal."""

import os
from typing import Any

from tqdm import tqdm


def bar(total: int, *, hidden: bool = False, **options: Any) -> "tqdm[Any]":
    """Build a progress bar that is erased when it ends; options: arguments of tqdm.

    The variable TQDM_DISABLE hides the bar, because the bars of concurrent sweep jobs would overwrite each other.
    """
    disable = True if hidden or os.environ.get("TQDM_DISABLE") else None  # None hides it unless stderr is a terminal
    return tqdm(total=total, disable=disable, leave=False, dynamic_ncols=True, **options)
