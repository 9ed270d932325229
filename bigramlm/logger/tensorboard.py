"""TensorBoard logger."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigramlm.errors import printable, visible
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The start of the names of final losses.
_FINAL = "final/"

# The width of the names of final losses, and the maximum width of a text, in characters.
_COLUMN, _WIDTH = 20, 100

# The number of bins of a histogram: TensorBoard draws 30 of them. Its own choice of bins takes ten times as long.
_BINS: Any = 60


class TensorBoardLogger:
    """A logger that writes an event file into the run folder.

    `tensorboard --logdir outputs` shows the event files of all runs. TensorBoard sorts charts and columns by name, so
    the losses are written twice: `Loss/val`, which comes first, is `val/loss`. Final losses are a text, because a curve
    of one point shows nothing.
    """

    def __init__(self, cfg: LoggerConfig, context: LoggerContext) -> None:  # noqa: ARG002
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        # TensorBoard drops the events of earlier files from purge_step on.
        self._writer = SummaryWriter(str(context.folder), purge_step=context.resumed_at)
        self._events: Any = self._writer.file_writer
        # The Custom Scalars tab draws the loss of a split and its counting baselines in one chart. All runs have the
        # same layout, even if their baselines differ, because TensorBoard draws a separate chart for each layout.
        charts = {
            f"{split} loss": ["Multiline", [f"^{split}/loss$", f"^{split}/(best|ngram)_"]] for split in ("val", "train")
        }
        self._writer.add_custom_scalars({"loss and what counting gives": charts})
        self._session_end = self._begin_session(context.swept) if context.swept else None
        if context.note and context.resumed_at is None:
            self.text(0, "note", context.note)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        # One event per record: add_scalar writes one event per number, each of which wakes the writer's thread.
        final = {name: value for name, value in metrics.items() if name.startswith(_FINAL)}
        first = {f"Loss/{split}": metrics[f"{split}/loss"] for split in ("train", "val") if f"{split}/loss" in metrics}
        curves = first | {name: value for name, value in metrics.items() if name not in final}
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in curves.items()]
        self._events.add_summary(self._summary(value=values), step)
        if final:
            lines = (f"{name.removeprefix(_FINAL):<{_COLUMN}}{value:.4f}" for name, value in final.items())
            self.text(step, "final losses", "\n".join(lines))

    def text(self, step: int, name: str, text: str) -> None:
        # Indented by four spaces, the text is code in Markdown, which preserves line breaks and special characters. The
        # Text tab does not wrap code, and cuts off what is wider than its frame.
        lines = (part for line in visible(text).split("\n") for part in _wrap(line) or [""])
        self._writer.add_text(name, "\n".join("    " + line for line in lines), step)

    def histograms(self, step: int, values: Mapping[str, NDArray[Any]]) -> None:
        for name, array in values.items():
            self._writer.add_histogram(name, array, step, bins=_BINS)

    def close(self, *, completed: bool) -> None:
        # TensorBoard keeps the first end that is written, so a run that may be resumed writes none.
        if self._session_end is not None and completed:
            self._events.add_summary(self._session_end)
        self._writer.close()

    def _begin_session(self, swept: dict[str, str]) -> Any:
        # Writes a row of the HParams tab into the run's own events, because add_hparams would create another run for
        # the row, and returns the summary that ends the row's session. The first summary, a list of columns, is
        # omitted: TensorBoard would take the list of whichever run comes first, and without a list shows the columns
        # of all runs.
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams({field: _parse_value(printable(value)) for field, value in swept.items()}, {})
        self._events.add_summary(begin)
        return end


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, drop_whitespace=False, replace_whitespace=False, expand_tabs=False)


def _parse_value(value: str) -> bool | float | str:
    # TensorBoard sorts and draws numbers only if their type is a number.
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value)
    except ValueError:
        return value
