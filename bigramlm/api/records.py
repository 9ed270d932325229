"""Lists of records that pandas can take over."""

from __future__ import annotations

from collections.abc import Iterable
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
