"""Where metrics go: metrics.jsonl, TensorBoard, W&B."""
