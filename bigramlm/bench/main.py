"""The command `bench`."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator

from bigramlm import bench
from bigramlm.bench.commands import bigram, checkpoint, compiled, search, startup, sweep
from bigramlm.bench.measure import Comparison
from bigramlm.bench.steps import generate, threads
from bigramlm.errors import UserError, require

BENCHMARKS: dict[str, Callable[[int], Iterator[Comparison]]] = {
    "bigram": bigram,
    "compiled": compiled,
    "startup": startup,
    "checkpoint": checkpoint,
    "generate": generate,
    "threads": threads,
    "sweep": sweep,
    "search": search,
}


def main() -> None:
    """Run the command line: python scripts/bench.py NAME"""
    about = "\n".join(
        textwrap.fill(f"{name:<11}{inspect.cleandoc(benchmark.__doc__ or '')}", 79, subsequent_indent=" " * 11)
        for name, benchmark in BENCHMARKS.items()
    )
    parser = argparse.ArgumentParser(
        "bench.py",
        description=f"{textwrap.fill(bench.__doc__ or '', 79)}\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS, help="what to compare")
    parser.add_argument("--pairs", type=int, default=7, help="how many pairs to measure (7)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON, a line a comparison")
    arguments = parser.parse_args()
    try:
        require(arguments.pairs >= 1, f"--pairs={arguments.pairs}: must be 1 or more")
        for comparison in BENCHMARKS[arguments.name](arguments.pairs):
            print(json.dumps(comparison.to_dict()) if arguments.json else comparison, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
