"""Measurement of the training speed and of the model FLOPs utilisation (MFU)."""

import logging
import time
from collections.abc import Callable

from tqdm import tqdm

from bigramlm.device.device import Device
from bigramlm.device.peak import peak

log = logging.getLogger(__name__)


class Speedometer:
    """A meter of the training speed in tokens per second and of the MFU.

    The model FLOPs utilisation (MFU) is the FLOP/s of the model's matrix products divided by the peak FLOP/s of the
    device. It is not defined for a model without matrix products. See Chowdhery et al. 2022, "PaLM: Scaling Language
    Modeling with Pathways", section 4.1.
    """

    def __init__(
        self,
        device: Device,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Determine the peak FLOP/s of the device, if the model has matrix products.

        flops_per_token: the FLOPs of the matrix products per token; 0 for a model without matrix products. clock: a
        function that returns the time in seconds since an arbitrary moment.
        """
        self.device = device
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.clock = clock
        self.last: dict[str, float] = {}
        """The values of the last measurement, by metric name."""
        self._mark = (0.0, 0)  # the clock and the step at the last measurement
        self.peak = peak(device) if flops_per_token else None
        if self.peak:
            log.info("MFU is relative to a peak of %s GFLOP/s (%s)", f"{self.peak.flops / 1e9:,.0f}", self.peak.how)

    def start(self, step: int) -> None:
        """Start the measurement before a step."""
        self._mark = (self.clock(), step)

    def measure(self, step: int) -> dict[str, float]:
        """Return the speed since the last measurement, by metric name."""
        now = self.clock()
        since, first_step = self._mark
        self.last = self.average(step - first_step, now - since)
        self._mark = (now, step)
        return self.last

    def average(self, steps: int, seconds: float) -> dict[str, float]:
        """Compute the average speed from the number of steps and their total duration.

        seconds: the total duration. Returns the speed by metric name.
        """
        rate = steps * self.tokens_per_step / seconds
        speed = {"tokens_per_second": round(rate, 1)}
        if self.peak:
            speed["mfu"] = round(rate * self.flops_per_token / self.peak.flops, 4)
        return speed

    def synchronized(self) -> float:
        """Wait until the device has finished its work, and return the clock."""
        self.device.synchronize()
        return self.clock()

    def exclude_since(self, start: float) -> None:
        """Exclude the time since `start` from the current measurement.

        The excluded time is that of an evaluation or a save.
        """
        since, first_step = self._mark
        self._mark = (since + self.clock() - start, first_step)

    def __str__(self) -> str:
        text = ""
        if self.last:
            text += f", {tqdm.format_sizeof(self.last['tokens_per_second'])} tokens/s"
        if "mfu" in self.last:
            text += f", MFU {self.last['mfu']:.0%}"
        return text
