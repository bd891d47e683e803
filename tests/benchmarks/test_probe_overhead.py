"""The benchmark of a probe's overhead: its parts are all of the time."""

from __future__ import annotations

import probe_overhead
import pytest


def test_shares_are_of_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_overhead, "EXAMPLES", 40_000)
    found = probe_overhead.measured(0)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert all(share > 0 for share in found["shares"].values())
    assert found["outside_training"] == pytest.approx(1.0 - found["shares"]["training steps"])
    assert found["milliseconds_of_step"] * found["steps"] == pytest.approx(
        1e3 * found["seconds"] * found["shares"]["training steps"]
    )
