"""The signals that stop a run."""

import signal

import pytest

from bigramlm.utils import stop


def test_ctrl_c_is_left_to_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in stop.STOP_SIGNALS}
    heeded = list(stop.STOP_SIGNALS)
    try:
        stop.leave_to_parent()
        with stop.stop_signals():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(stop.Stopped):
                signal.raise_signal(signal.SIGTERM)
    finally:
        stop.STOP_SIGNALS[:] = heeded
        for number, handler in before.items():
            signal.signal(number, handler)
