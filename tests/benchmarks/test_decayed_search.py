"""The search over recorded decays: its replay."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

from decayed_search import HORIZONS, RANDOM, Job, _played, run, summary, traces_of


def test_a_trial_reports_its_stable_part_and_ends_at_the_horizon() -> None:
    for trace in traces_of("digits_mlp", 0).values():
        examples = [n for n, _ in trace]
        assert examples == sorted(set(examples))
        assert examples[-1] == HORIZONS["digits_mlp"]
        assert len(trace) >= 4


def test_the_nearest_run_is_played_and_a_rate_beyond_diverges() -> None:
    traces = traces_of("digits_mlp", 0)
    size, rate = next(iter(traces))
    assert _played(traces, math.log2(size) + 0.1, 1.1 * rate) == traces[size, rate]
    highest = max(own for s, own in traces if s == size)
    ((_, loss),) = _played(traces, math.log2(size), 2.0 * highest)
    assert math.isnan(loss)


def test_a_study_is_counted_in_whole_trials() -> None:
    row = run(Job("transformer", RANDOM, 0))
    assert row["found"]
    assert row["spent"] <= row["trials"]
    cell = summary([row])["transformer"][RANDOM]
    assert (cell["median"], cell["found"], cell["seeds"]) == (row["spent"], 1, 1)
