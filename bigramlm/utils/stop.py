"""Signals that stop a run.

Training ends after the current step and a save, or immediately at the second signal.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)

# Ctrl-C, a termination request and, where the platform has SIGHUP, a closed terminal.
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Stopped(BaseException):
    """The exception that a stop signal raises.

    Like KeyboardInterrupt, it does not derive from Exception, so that handlers of failures do not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopSignals:
    """A handler of stop signals, which raises Stopped at once or defers it.

    During training it records the first signal instead, so that the run can finish its step and save.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that was recorded; None if there is none."""
        self._deferring = False

    def requested(self) -> bool:
        """Check whether a stop was requested."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Record the first signal in the block, for `requested`, instead of raising.

        A second signal raises Stopped at once.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._deferring or self.received is not None:
            raise Stopped(number)
        self.received = number
        level = logging.WARNING if len(STOP_SIGNALS) > 1 else logging.INFO  # for workers, the parent process warns
        log.log(level, "%s: saving and stopping after this step; repeat to stop at once", signal.Signals(number).name)


def handle_sigterm_only() -> None:
    """Ignore every stop signal except SIGTERM, in a worker.

    Ctrl-C reaches every process of a terminal, so only the parent handles it and passes the stop on.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    STOP_SIGNALS[:] = [signal.SIGTERM]


def _handled_signals() -> list[signal.Signals]:
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    # Background jobs of a shell ignore SIGINT, but a SIGINT that is sent to them explicitly must stop the run.
    return [number for number in STOP_SIGNALS if number not in ignored or number == signal.SIGINT]


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle Ctrl-C, SIGTERM and SIGHUP in the block.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored, except SIGINT.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield stop
        return
    previous = {number: signal.signal(number, stop) for number in _handled_signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
