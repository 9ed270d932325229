"""Lists of records that pandas can take over."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]


class Records(list[dict[str, Any]]):
    """A list of dictionaries, such as the records of metrics.jsonl."""

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with one row per record.

        Raises UserError if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UserError("to_pandas(): pandas is not installed; install it with pip install pandas") from None
        return pd.DataFrame(list(self))


class Table(Records):
    """Records that are shown as a table of text."""

    def __init__(self, records: Iterable[dict[str, Any]], text: str) -> None:
        super().__init__(records)
        self._text = text

    def __repr__(self) -> str:
        return self._text


class Page:
    """A page of HTML in a file, which a notebook shows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<bigramlm page {self.path}>"

    def _repr_html_(self) -> str:
        # In a frame of its own, so that neither the page nor the notebook changes the other.
        content = html.escape(self.path.read_text("utf-8"))
        return f'<iframe srcdoc="{content}" width="100%" height="900" style="border: 0"></iframe>'
