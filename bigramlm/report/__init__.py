"""A page about runs, complete in itself: their curves, what was swept, the table, the samples, what differs."""
