"""The signals that stop a run."""

import signal

import pytest

from bigramlm.utils import stop


def test_workers_ignore_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {number: signal.getsignal(number) for number in stop.STOP_SIGNALS}
    signals = list(stop.STOP_SIGNALS)
    try:
        stop.handle_sigterm_only()
        with stop.stop_signals():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(stop.Stopped):
                signal.raise_signal(signal.SIGTERM)
    finally:
        stop.STOP_SIGNALS[:] = signals
        for number, handler in handlers.items():
            signal.signal(number, handler)
