"""The command `bench`."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from bigramlm.cli.common import ArgumentParser, command
from bigramlm.dev import bench
from bigramlm.dev.bench.commands import bigram, checkpoint, compiled, gpt, search, startup, sweep
from bigramlm.dev.bench.data import data
from bigramlm.dev.bench.gpt2 import gpt2
from bigramlm.dev.bench.gpu import gpu, mps
from bigramlm.dev.bench.measure import Report
from bigramlm.dev.bench.report import report
from bigramlm.dev.bench.steps import generate, nanogpt, profile, step, threads
from bigramlm.dev.bench.versions import bits, versions
from bigramlm.errors import require
from bigramlm.utils.console import show

BENCHMARKS: dict[str, Callable[..., Iterator[Report]]] = {
    "bigram": bigram,
    "gpt": gpt,
    "step": step,
    "nanogpt": nanogpt,
    "profile": profile,
    "compiled": compiled,
    "gpt2": gpt2,
    "gpu": gpu,
    "mps": mps,
    "startup": startup,
    "checkpoint": checkpoint,
    "generate": generate,
    "threads": threads,
    "sweep": sweep,
    "search": search,
    "report": report,
    "data": data,
    "versions": versions,
    "bits": bits,
}


@command
def main() -> None:
    """Run the command line: python scripts/bench.py NAME."""
    about = "\n".join(
        textwrap.fill(f"{name:<11}{inspect.cleandoc(benchmark.__doc__ or '')}", 79, subsequent_indent=" " * 11)
        for name, benchmark in BENCHMARKS.items()
    )
    parser = ArgumentParser(
        "bench.py",
        description=f"{textwrap.fill(bench.__doc__ or '', 79)}\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="the benchmark to run")
    about_overrides = "for step and profile: overrides of the run, as for train.py; for versions and bits: OLD NEW"
    parser.add_argument("overrides", nargs="*", help=about_overrides)
    parser.add_argument("--pairs", type=int, default=7, help="the number of pairs to measure (default: 7)")
    parser.add_argument("--parts", help="for gpu and mps: the parts to run, such as gpt2,bigram (default: all)")
    parser.add_argument("--minutes", type=float, help="for gpu and mps: the time after which to stop (default: 9)")
    parser.add_argument("--output", type=Path, help="for gpu and mps: the JSON file to write")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON, one line per comparison")
    arguments = parser.parse_intermixed_args()
    benchmark, overrides = BENCHMARKS[arguments.name], arguments.overrides
    require(arguments.pairs >= 1, f"--pairs={arguments.pairs}: must be at least 1")
    parameters = inspect.signature(benchmark).parameters
    options = {
        name: value for name in ("parts", "minutes", "output") if (value := getattr(arguments, name)) is not None
    }
    for name in options:
        require(name in parameters, f"--{name}: bench {arguments.name} does not take this option")
    takes_overrides = inspect.Parameter.VAR_POSITIONAL in {p.kind for p in parameters.values()}
    require(takes_overrides or not overrides, f"{' '.join(overrides)}: bench {arguments.name} takes no overrides")
    ok = True
    for result in benchmark(arguments.pairs, *overrides, **options):
        show(json.dumps(result.to_dict()) if arguments.json else str(result))
        ok = ok and getattr(result, "ok", True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
