"""What the demo's honesty is told by."""

from __future__ import annotations

from typing import Any

import pytest
from demo_honesty import print_summary, summary


def row(seed: int, ratio: float, *, inside: bool) -> dict[str, Any]:
    told = {"predicted": [100.0, 80.0, 120.0], "measured": 100.0 * ratio, "inside": inside}
    return {"seed": seed, "batch_size": 64, "learning_rate": 0.5, "reached": True, "steps": told, "examples": told}


def test_a_run_that_does_not_arrive_lies_in_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    lost = {"seed": 2, "reached": False, "failure": "no plan"}
    rows = [row(0, 0.9, inside=True) | {"missed_decays": 1}, row(1, 1.3, inside=False), lost]
    found = summary(rows)
    assert (found["seeds"], found["arrived"], found["missed_decays"]) == (3, 2, 1)
    assert found["target_inside"] == 3
    assert found["steps"]["inside"] == 1
    assert found["examples"]["measured_over_predicted"][1] == pytest.approx(1.1)
    print_summary(rows, found)
    assert "did not arrive: no plan" in capsys.readouterr().out
    assert summary([lost])["steps"]["measured_over_predicted"] is None
