"""Loggers: metrics.jsonl, which is always written, TensorBoard, and W&B.

An error in a logger costs a warning, and the run continues without this logger. TensorBoard's HParams are two summaries
in a job's own event file: the swept values at the start, and the successful end. A third summary, the list of columns,
is omitted: TensorBoard would take the list of whichever run comes first, and without a list shows the columns of all
runs.
"""
