"""Signals to stop: a run that trains ends after its step and a save, at the second one at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)

# Ctrl-C, a request to end, and, where there is such a thing, the terminal that is closed.
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Stopped(BaseException):
    """The run was ended by a signal. No Exception, like KeyboardInterrupt: what guards against failures lets it by."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopSignals:
    """A handler of signals to stop: it ends the run at once or, while steps are taken, notes the signal."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that was noted."""
        self._is_noted = False

    def requested(self) -> bool:
        """Tell whether the run is to stop."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Raise Stopped where the run is to stop."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Note the first signal in the block, for who asks `requested`; a second one ends the run at once."""
        self._is_noted = True
        try:
            yield
        finally:
            self._is_noted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._is_noted or self.received is not None:
            raise Stopped(number)
        self.received = number
        level = logging.WARNING if len(STOP_SIGNALS) > 1 else logging.INFO  # of workers the parent tells
        log.log(level, "%s: saving after this step; once more to stop at once", signal.Signals(number).name)


def leave_to_parent() -> None:
    """In a worker: heed SIGTERM only. A Ctrl-C reaches every process of a terminal; the parent passes it on."""
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    STOP_SIGNALS[:] = [signal.SIGTERM]


def _heeded() -> list[signal.Signals]:
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    # A shell's background jobs ignore SIGINT too, and there a SIGINT is still meant.
    return [number for number in STOP_SIGNALS if number not in ignored or number == signal.SIGINT]


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Take Ctrl-C, SIGTERM and SIGHUP while a run lasts; under nohup SIGHUP stays ignored."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may take signals
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in _heeded()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
