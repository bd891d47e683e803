"""What optuna-dashboard finds in a study, read as it reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from visualization.samples import study_of

from batchopt.cli.main import main
from batchopt.errors import EvidenceError, MissingPackageError
from batchopt.planning.plan import Plan
from batchopt.report import save_to_dashboard
from batchopt.report.dashboard import HEADING
from batchopt.search import explain

dashboard = pytest.importorskip("optuna_dashboard")


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """A study in a file, whose attributes went through JSON."""
    made, storage = study_of(), f"sqlite:///{tmp_path / 'study.db'}"
    optuna.copy_study(
        from_study_name=made.study_name, from_storage=made._storage, to_storage=storage, to_study_name="batchopt"
    )
    return optuna.load_study(study_name="batchopt", storage=storage)


def figures_of(study: optuna.Study) -> dict[str, Any]:
    """The figures that the dashboard shows, by their names."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {name: json.loads(text) for name, text in get_plotly_graph_objects(attributes).items()}


def test_figures_and_note(study: optuna.Study, plan: Plan) -> None:
    save_to_dashboard(study, plan)
    figures = figures_of(study)
    assert set(figures) == {f"batchopt:{name}" for name in ("study", "study-history", "plan-cost", "schedule")}
    assert figures["batchopt:study"]["data"][0]["name"] == f"plan: batch size {plan.batch_size}"
    note = dashboard.get_note(study)
    assert note.startswith(f"{HEADING}\n\n- The plan. ")
    assert note.count("\n- ") == 1 + len(explain(study))
    assert "12 completed" in note


def test_without_a_plan(study: optuna.Study) -> None:
    save_to_dashboard(study)
    assert set(figures_of(study)) == {"batchopt:study", "batchopt:study-history"}
    assert "The plan." not in dashboard.get_note(study)


def test_what_is_saved_again_takes_the_place_of_the_old_and_a_persons_words_stay(study: optuna.Study) -> None:
    dashboard.save_note(study, "Runs on the new data.\n")
    save_to_dashboard(study)
    save_to_dashboard(study, last=1)
    note = dashboard.get_note(study)
    assert note.startswith(f"Runs on the new data.\n\n{HEADING}\n")
    assert note.count(HEADING) == 1
    assert len(figures_of(study)) == 2


def test_reasons_are_shown_as_text(study: optuna.Study) -> None:
    trial = study.ask()
    trial.set_user_attr("batchopt:proposal", "<script>alert(1)</script> *a* [b](c)")
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    save_to_dashboard(study)
    assert r"\<script\>alert(1)\</script\> \*a\* \[b\](c)" in dashboard.get_note(study)


def test_a_study_of_two_objectives_has_no_history() -> None:
    from batchopt.planning.goal import ReachLoss
    from batchopt.search import TradeoffSampler

    goal = ReachLoss(0.5, least=("steps", "examples"))
    sampler = TradeoffSampler(goal=goal, batch_size="bs", learning_rate="lr", seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    trial = study.ask()
    study.tell(trial, [trial.suggest_int("bs", 8, 64), trial.suggest_float("lr", 0.1, 1.0)])
    save_to_dashboard(study)
    assert set(figures_of(study)) == {"batchopt:study"}


def test_a_study_without_batchopt_is_left_as_it_was() -> None:
    study = study_of(settings=False)
    with pytest.raises(EvidenceError, match="goal"):
        save_to_dashboard(study)
    assert figures_of(study) == {}
    assert dashboard.get_note(study) == ""


def test_without_the_package_it_says_what_to_install(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[dashboard\]' in a clone"):
        save_to_dashboard(study)


def test_the_command_saves_it(
    study: optuna.Study, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "study.db")
    plan.save(tmp_path / "plan.json")
    assert main(["explain", file, "--dashboard", "--plan", str(tmp_path / "plan.json")]) == 0
    assert f"saved figures and a note in {file}" in capsys.readouterr().out
    assert len(figures_of(study)) == 4
    assert main(["explain", file, "--plan", str(tmp_path / "plan.json")]) == 2
    assert "--plan is shown with --dashboard only" in capsys.readouterr().err
