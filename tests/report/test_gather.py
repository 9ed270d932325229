"""Tests of reading the curves of a report."""

from bigramlm.report.gather import GrowingSeries


def test_a_short_series_keeps_all_points() -> None:
    series = GrowingSeries(limit=1000)
    for step in range(850):
        series.add({"step": step, "seconds": step / 2, "value": -step})
    for _ in range(2):
        found = series.all()
        assert found == {
            "step": [*range(850)],
            "seconds": [step / 2 for step in range(850)],
            "value": [-step for step in range(850)],
        }


def test_a_long_series_is_bounded_and_keeps_outliers_at_equal_density() -> None:
    series, longest = GrowingSeries(limit=1000), 0
    outliers = {7: 1e6, 4_321: -1e6, 66_666: 5e5, 99_990: -5e5}
    for step in range(100_000):
        series.add({"step": step, "seconds": 0.0, "value": outliers.get(step, (step * 7919) % 1000)})
        longest = max(longest, len(series.all()["step"])) if step % 500 == 499 else longest
    found = series.all()
    kept = dict(zip(found["step"], found["value"], strict=True))
    assert longest < 100_000 // 4
    assert len(kept) > 400
    assert found["step"] == sorted(kept)
    assert {step: kept.get(step) for step in outliers} == outliers
    until = 90_000  # the last points may not be thinned yet
    halves = [sum(low <= step < low + until // 2 for step in kept) for low in (0, until // 2)]
    assert max(halves) < 3 * min(halves)
