"""Training speed: tokens per second, and their share of what the device can do."""

import logging
import time
from collections.abc import Callable

from tqdm import tqdm

from bigramlm.device.device import Device
from bigramlm.device.peak import peak

log = logging.getLogger(__name__)


class Speedometer:
    """Tokens a second, and the share of the device's peak that this is in matrix products (MFU), where it has any.

    Model FLOPs utilisation: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", section 4.1.
    """

    def __init__(
        self,
        device: Device,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """flops_per_token: in matrix products, 0 for a model without; clock: in seconds, of which differences count."""
        self.device = device
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.clock = clock
        self.last: dict[str, float] = {}
        """The last measurement."""
        self._marked = (0.0, 0)  # when it was, and at which step
        self.peak = peak(device) if flops_per_token else None
        if self.peak:
            log.info("peak, for MFU: %s GFLOP/s (%s)", f"{self.peak.flops / 1e9:,.0f}", self.peak.how)

    def start(self, step: int) -> None:
        """Begin to measure at a step."""
        self._marked = (self.clock(), step)

    def measure(self, step: int) -> dict[str, float]:
        """Return the speed since the last time, by the metrics' names."""
        now = self.clock()
        since, at = self._marked
        self.last = self.over(step - at, now - since)
        self._marked = (now, step)
        return self.last

    def over(self, steps: int, seconds: float) -> dict[str, float]:
        """Return the speed of so many steps in so many seconds, by the metrics' names."""
        rate = steps * self.tokens_per_step / seconds
        speed = {"tokens_per_second": round(rate, 1)}
        if self.peak:
            speed["mfu"] = round(rate * self.flops_per_token / self.peak.flops, 4)
        return speed

    def synchronized(self) -> float:
        """Return the clock once the device has done all it was given."""
        self.device.synchronize()
        return self.clock()

    def leave_out(self, began: float) -> None:
        """Leave out the time since then, which evaluating or saving took."""
        since, at = self._marked
        self._marked = (since + self.clock() - began, at)

    def __str__(self) -> str:
        pace = ""
        if self.last:
            pace += f", {tqdm.format_sizeof(self.last['tokens_per_second'])} tokens/s"
        if "mfu" in self.last:
            pace += f", MFU {self.last['mfu']:.0%}"
        return pace
