"""Loggers: metrics.jsonl, which is always written, TensorBoard, and W&B.

If a logger fails, a warning is logged and the run continues without that logger.

For TensorBoard's HParams tab, a sweep job writes two summaries to its event file. The first contains the values of the
swept fields and is written at the start. The second marks the job as successful and is written when the job completes.

TensorBoard also supports a third summary, the list of columns. It is omitted, because TensorBoard would apply the list
of one run to all runs. Without a list, TensorBoard shows the columns of all runs.
"""
