"""The differences between runs in config, text, code and environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bigramlm.config.run_config import flat
from bigramlm.runs.summary import RunSummary, as_override


@dataclass(frozen=True)
class Difference:
    """A field whose values differ between runs."""

    field: str
    values: list[str]
    """The value of each run, in the order of the rows; an empty string if the run has no value."""

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Each value with the number of runs that have it.

        If all values are numbers, they are sorted by size. Otherwise the values are in the order of the rows.
        """
        counted = Counter(self.values)
        try:
            return sorted(counted.items(), key=lambda item: float(item[0]))
        except ValueError:
            return list(counted.items())


def differences(runs: Sequence[RunSummary]) -> list[Difference]:
    """Return the differences between runs in config, text, code and environment."""
    facts = []
    for run in runs:
        git = run.part("git")
        origin = {
            "text": str(run.text or "")[:12],
            "code": str(git.get("commit", ""))[:10] + (" with changes" if git.get("dirty") else ""),
            **{f"version of {name}": version for name, version in run.part("versions").items()},
            **{name: run.summary.get(name, "") for name in ("host", "device")},
        }
        facts.append({name: as_override(value) for name, value in {**flat(run.config), **origin}.items()})
    names = dict.fromkeys(name for fact in facts for name in fact)
    found = [Difference(name, [fact.get(name, "") for fact in facts]) for name in names]
    return [difference for difference in found if len(set(difference.values)) > 1]
