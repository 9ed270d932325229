"""Loggers: metrics.jsonl, which is always written, TensorBoard, and W&B.

Whatever a logger raises costs a warning, and the run continues without it. TensorBoard's HParams are two summaries in
a job's own event file: what is swept, at the start, and that it completed, at the end. The third one, the list of
columns, is left out: TensorBoard takes it from whichever run comes first, and without it shows all columns that any
run has.
"""
