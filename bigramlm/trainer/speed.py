"""Training speed in tokens per second, and the model FLOPs utilisation (MFU)."""

import logging
import time
from collections.abc import Callable

from tqdm import tqdm

from bigramlm.device.device import Device
from bigramlm.device.peak import peak

log = logging.getLogger(__name__)


class Speedometer:
    """A meter of the training speed in tokens per second and of the MFU.

    The model FLOPs utilisation (MFU) is the share of the device's peak that the model's matrix products use; a model
    without matrix products has none. See Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways",
    section 4.1.
    """

    def __init__(
        self,
        device: Device,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Determine the device's peak, if the model has matrix products.

        flops_per_token: the FLOPs in matrix products, 0 for a model without any; clock: a function that returns seconds
        from an arbitrary origin.
        """
        self.device = device
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.clock = clock
        self.last: dict[str, float] = {}
        """The last measurement, by metric name."""
        self._mark = (0.0, 0)  # the clock and the step at the last measurement
        self.peak = peak(device) if flops_per_token else None
        if self.peak:
            log.info("peak, for MFU: %s GFLOP/s (%s)", f"{self.peak.flops / 1e9:,.0f}", self.peak.how)

    def start(self, step: int) -> None:
        """Start measuring at a step."""
        self._mark = (self.clock(), step)

    def measure(self, step: int) -> dict[str, float]:
        """Return the speed since the last measurement, by metric name."""
        now = self.clock()
        since, first_step = self._mark
        self.last = self.average(step - first_step, now - since)
        self._mark = (now, step)
        return self.last

    def average(self, steps: int, seconds: float) -> dict[str, float]:
        """Return the average speed of a number of steps, by metric name."""
        rate = steps * self.tokens_per_step / seconds
        speed = {"tokens_per_second": round(rate, 1)}
        if self.peak:
            speed["mfu"] = round(rate * self.flops_per_token / self.peak.flops, 4)
        return speed

    def synchronized(self) -> float:
        """Return the clock after the device has finished all its work."""
        self.device.synchronize()
        return self.clock()

    def exclude_since(self, start: float) -> None:
        """Exclude the time since `start`, which an evaluation or a save took."""
        since, first_step = self._mark
        self._mark = (since + self.clock() - start, first_step)

    def __str__(self) -> str:
        text = ""
        if self.last:
            text += f", {tqdm.format_sizeof(self.last['tokens_per_second'])} tokens/s"
        if "mfu" in self.last:
            text += f", MFU {self.last['mfu']:.0%}"
        return text
