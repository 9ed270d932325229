"""Handling of the signals that stop a run.

At the first signal, training finishes the current step, saves a checkpoint and stops. A second signal stops the run
immediately.
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

    Like KeyboardInterrupt, Stopped does not derive from Exception, so that `except Exception` does not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {_name(number)}")
        self.signal = number


def _name(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name} (Ctrl-C)" if number == signal.SIGINT else name


class StopSignals:
    """A signal handler that raises Stopped, or records the signal in `deferred`.

    During training, the first signal is only recorded, so that the run can finish its step and save a checkpoint.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The recorded signal; None if no signal was recorded."""
        self._deferring = False

    def requested(self) -> bool:
        """Check whether a stop signal was recorded."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Raise Stopped if a stop signal was recorded."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Record the first stop signal in the block instead of raising Stopped.

        `requested` then returns True. A second signal raises Stopped immediately.
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
        repeated = "press it again" if number == signal.SIGINT else "repeat the signal"
        log.log(
            level, "%s: saving a checkpoint and stopping after this step; %s to stop at once", _name(number), repeated
        )


def handle_sigterm_only() -> None:
    """Ignore every stop signal except SIGTERM in a worker process.

    A terminal sends Ctrl-C to all its processes. Only the parent process handles Ctrl-C, and stops its workers with
    SIGTERM.
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

    SIGTERM or SIGHUP stays ignored if it was ignored before, e.g. SIGHUP under nohup. SIGINT is always handled. Outside
    the main thread, no signal is handled.
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
