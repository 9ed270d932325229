"""Progress bars, shown only if standard error is a terminal."""

import os
from typing import Any

from tqdm import tqdm


def bar(total: int, *, hidden: bool = False, **options: Any) -> "tqdm[Any]":
    """Build a progress bar that is erased when the bar is closed.

    hidden: if True, the bar is not shown. options: additional arguments of tqdm. The environment variable TQDM_DISABLE
    also hides the bar. Sweeps set the variable for their workers, because the bars of concurrent jobs would overwrite
    each other.
    """
    disable = True if hidden or os.environ.get("TQDM_DISABLE") else None  # None hides it unless stderr is a terminal
    return tqdm(total=total, disable=disable, leave=False, dynamic_ncols=True, **options)
