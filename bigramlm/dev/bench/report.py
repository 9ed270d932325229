"""A benchmark of the report page: writing time, size and response time."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bigramlm.config.run_config import config_hash, to_yaml
from bigramlm.dev.bench.steps import composed_config
from bigramlm.dev.browser import browser, unavailable_reason
from bigramlm.sweeps.plan import Job, Sweep
from bigramlm.utils import paths

# The elements to click, in rotation. The page has responded once the next frame is drawn, and has finished once every
# chart on screen is redrawn.
CLICKS = {
    "log": ("#bar [name=y][value=log]", "#bar [name=y][value=linear]"),
    "tokens": ("[name=x][value=tokens]", "[name=x][value=step]"),
    "train": ("[name=train]",),
    "batch": ("[name=batch]",),
    "pick": ("#results .pick",),
    "sort": ("#results th:nth-child(2) button",),
    "dark": ("#theme",),
}
_CLICK = """
  const element = document.querySelector(args[0]), began = performance.now();
  element.click();
  await new Promise(requestAnimationFrame);
  await new Promise((drawn) => setTimeout(drawn));
  const responded = performance.now() - began;
  while ([...stale].some((name) => onScreen.has(name))) await new Promise(requestAnimationFrame);
  return [responded, performance.now() - began];
"""


class ReportFigures:
    """The writing time, the size and the response times of a report page."""

    def __init__(
        self, title: str, *, seconds: list[float], size: int, clicks: dict[str, list[tuple[float, float]]]
    ) -> None:
        """Store the measurements.

        seconds: the time to write the page, per repetition. size: the size of the page in bytes. clicks: the
        milliseconds from each click to the first response and to the final frame, by the name of the clicked element.
        """
        self.title = title
        self.seconds = seconds
        self.size = size
        self.clicks = clicks

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "seconds": self.seconds, "bytes": self.size, "clicks": self.clicks}

    def __str__(self) -> str:
        lines = [self.title, f"written in {statistics.median(self.seconds):.2f} s, {self.size / 1e6:.2f} MB"]
        for name, times in self.clicks.items():
            responded, finished = zip(*times, strict=True)
            figures = (f"{statistics.median(ms):4.0f} ms (at most {max(ms):.0f})" for ms in (responded, finished))
            lines.append(f"click on {name:<7}{', finished after '.join(figures)}")
        return "\n  ".join(lines)


def report(pairs: int) -> Iterator[ReportFigures]:
    """Measure the report page of a sweep of 200 jobs with 100 records each.

    The figures are the seconds that the command takes, the size of the page and, if Chromium is available, the
    milliseconds from a click to the first response and to the final frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_sweep(Path(folder))
        page, seconds = Path(folder) / "report.html", []
        for _ in range(pairs):
            began = time.perf_counter()
            command = [sys.executable, str(paths.home() / "scripts" / "runs.py"), "report", folder]
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        clicks: dict[str, list[tuple[float, float]]] = {name: [] for name in CLICKS}
        reason = unavailable_reason()
        if reason is None:
            with browser() as window:
                window.open(page)
                for (name, selectors), n in itertools.product(CLICKS.items(), range(2 * pairs)):
                    clicks[name].append(tuple(window.run(_CLICK, selectors[n % len(selectors)])))
        title = "a report of 200 runs with 100 records each" + (
            f"; clicks were not measured: {reason}" if reason else ""
        )
        yield ReportFigures(
            title,
            seconds=seconds,
            size=page.stat().st_size,
            clicks={name: times for name, times in clicks.items() if times},
        )


def write_synthetic_sweep(folder: Path, *, records: int = 100, seeds: int = 5) -> None:
    """Write a sweep folder with synthetic losses in the real file formats.

    The sweep has 40 jobs per seed, one for each combination of ten learning rates and four block sizes. The losses of
    the jobs with the highest learning rates diverge. records: the number of records per job.
    """
    rates = [f"{10 ** (-4 + 0.5 * n):.3g}" for n in range(10)]
    swept = {"optim.lr": rates, "data.block_size": ["8", "16", "32", "64"], "seed": [*map(str, range(1, 1 + seeds))]}
    sweep, rng = Sweep(folder), random.Random(0)
    sweep.fields = list(swept)
    base = composed_config("data=bundled")
    for number, values in enumerate(itertools.product(*swept.values())):
        overrides = [f"{field}={value}" for field, value in zip(swept, values, strict=True)]
        rate, block_size, seed = float(values[0]), int(values[1]), int(values[2])
        cfg = replace(
            base,
            optim=replace(base.optim, lr=rate),
            data=replace(base.data, block_size=block_size),
            seed=seed,
            trainer=replace(base.trainer, steps=100 * records),
        )
        sweep.jobs[number] = Job(number, overrides, config_hash(cfg))
        run = folder / str(number)
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(cfg), "utf-8")
        floor = 1.5 + 0.1 * abs(math.log10(rate) + 2) - 0.05 * math.log2(block_size / 8) + rng.gauss(0, 0.01)
        diverges = rate > 1
        lines = []
        for n in range(records):
            loss = floor + (4.2 - floor) * math.exp(-n * min(rate, 0.1) * 20) + (n**1.5 if diverges else 0)
            losses = {"train/loss": loss - 0.05, "val/loss": loss, "train/batch_loss": loss + rng.gauss(0, 0.1)}
            lines.append(
                {
                    "step": 100 * n,
                    "seconds": round(0.1 * n, 4),
                    **losses,
                    "val/best_bigram": 2.48,
                    "lr": rate,
                    "grad_norm": 1.0,
                }
            )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        (run / "samples.txt").write_text(f"---- step {100 * records}\nTo be, or not to be: {overrides}\n" * 8, "utf-8")
        final = {"train/loss": loss - 0.05, "val/loss": loss, "val/bpc": loss / math.log(2)}
        summary = {
            "status": "completed",
            "step": 100 * records,
            "overrides": overrides,
            "final": final,
            "n_params": 4225,
            "best": {"step": 100, "val/loss": loss},
            "tokens_per_second": 1e6,
            "seconds": 0.1 * records,
        }
        (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    sweep.save()
