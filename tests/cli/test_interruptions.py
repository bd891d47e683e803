"""Commands that are ended from outside lose nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from launching import started

from batchopt import Schedule
from batchopt.cli.main import main


def slowly(flow: Any, folder: Path) -> str:
    """The same task in a file of its own, whose steps leave time to end its process."""
    source = Path(flow.task.rpartition(":")[0]).read_text()
    (folder / "slow.py").write_text(source + "\nimport dataclasses, time\n"
                    "task = dataclasses.replace(task, before_step=lambda model: time.sleep(0.005))\n")  # fmt: skip
    return f"{folder / 'slow.py'}:task"


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_ctrl_c_leaves_a_probe_that_goes_on(flow: Any, tmp_path: Path) -> None:
    out = tmp_path / "probe.json"
    options = ("--examples", "30000", "-o", str(out))
    process = started(tmp_path, main, ["probe", slowly(flow, tmp_path), *options])
    kept = tmp_path / "probe.json.partial"
    wait_for(lambda: len(list(kept.glob("*.json"))) >= 4)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(300)
    assert process.exitcode == 130
    errors = (tmp_path / "err0").read_text()
    assert errors.strip().splitlines()[-1] == "batchopt: interrupted; the same command goes on where it stopped"
    finished = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.json") if file.name != "identity.json"}
    assert len(finished) >= 3
    assert not out.exists()
    os.link(kept / min(finished), tmp_path / "witness")
    assert main(["probe", flow.task, *options]) == 0
    assert out.exists()
    assert not kept.exists()


@pytest.mark.usefixtures("few_reports")
def test_a_killed_study_goes_on(flow: Any, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    options = (flow.forecast, "--plan", flow.plan, "--study", str(study), "--trials")
    process = started(tmp_path, main, ["tune", slowly(flow, tmp_path), *options, "40"])
    wait_for(lambda: _running(study))
    assert _running(study), "no trial began"
    process.kill()
    process.join(300)
    left = _running(study)
    assert left, "the killed run leaves a zombie"
    with contextlib.closing(sqlite3.connect(study)) as connection:  # as if its last sign of life were long ago
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
        connection.commit()
    done = len(optuna.load_study(study_name="batchopt", storage=f"sqlite:///{study}").trials)
    assert main(["tune", flow.task, *options, str(done)]) == 0
    trials = optuna.load_study(study_name="batchopt", storage=f"sqlite:///{study}").trials
    assert [trials[number].state.name for number in left] == ["FAIL"] * len(left)
    assert sum(trial.state.name in {"COMPLETE", "PRUNED"} for trial in trials) == done


def _running(study: Path) -> list[int]:
    """Trials under way that have reported, read without Optuna: it would create the tables beside the child."""
    if not study.exists():
        return []
    query = (
        "SELECT DISTINCT trials.number FROM trials JOIN trial_intermediate_values AS reports "
        "ON reports.trial_id = trials.trial_id WHERE trials.state = 'RUNNING'"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as connection:
            return [number for (number,) in connection.execute(query)]
    except sqlite3.OperationalError:  # the tables are not there yet, or being written
        return []


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path: Path) -> None:
    Schedule.constant(64, examples=6_400, learning_rate=0.1).save(tmp_path / "schedule.json")
    command = [sys.executable, "-m", "batchopt", "schedule", str(tmp_path / "schedule.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 141
