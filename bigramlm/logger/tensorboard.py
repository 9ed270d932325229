"""TensorBoard: an event file in the run's folder."""

from __future__ import annotations

from typing import Any

from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig


class TensorBoardLogger:
    """Writes an event file into the run's folder: `tensorboard --logdir outputs`."""

    def __init__(self, cfg: LoggerConfig, origin: LoggerContext) -> None:  # noqa: ARG002
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        # With a step to purge from, TensorBoard drops what earlier event files have from there on.
        self._writer = SummaryWriter(str(origin.folder), purge_step=origin.resumed_at)
        self._events: Any = self._writer.file_writer
        # The Custom Scalars tab draws a split's loss and what counting gives in one chart. The same layout in all runs,
        # whose models have other references: TensorBoard would draw a chart for each layout that differs.
        charts = {
            f"{split} loss": ["Multiline", [f"^{split}/loss$", f"^{split}/(best|ngram)_"]] for split in ("val", "train")
        }
        self._writer.add_custom_scalars({"loss and what counting gives": charts})
        self._end_of_session = self._begin_session(origin.swept) if origin.swept else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        # One event a record: add_scalar makes one a number, and each wakes the writer's thread.
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._events.add_summary(self._summary(value=values), step)

    def text(self, step: int, name: str, text: str) -> None:
        # Four spaces make it code in Markdown, which keeps its lines and marks as they are.
        self._writer.add_text(name, "\n".join("    " + line for line in text.split("\n")), step)

    def close(self, *, completed: bool) -> None:
        if self._end_of_session is not None and completed:  # the first end that is told stays; others may go on
            self._events.add_summary(self._end_of_session)
        self._writer.close()

    def _begin_session(self, swept: dict[str, str]) -> Any:
        # A row of the HParams tab, in the run's own events, where add_hparams would make a run of its own for it. Of
        # the three summaries that TensorBoard knows the first, which lists the columns, is left out: it takes the list
        # of whichever run comes first, and without one all that any run has. Returns the one that says it has ended.
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams({field: _plain(value) for field, value in swept.items()}, {})
        self._events.add_summary(begin)
        return end


def _plain(value: str) -> bool | float | str:
    # A field's value as what it is: TensorBoard sorts and draws numbers as such.
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value)
    except ValueError:
        return value
