from __future__ import annotations

import math

import optuna
import pytest
from visualization.samples import add_trial, plan_of, study_of

from batchopt.planning.plan import Plan
from batchopt.visualization.study import plot_study
from batchopt.visualization.study_history import history_data, plot_study_history
from batchopt.visualization.trials import study_data


def test_every_fate_has_its_marks(plan: Plan) -> None:
    figure = plot_study(study_of(), plan)
    assert [trace.name for trace in figure.data] == [
        "plan: batch size 128",
        "completed (12)",
        "pruned before compute (5)",
        "pruned while running (5)",
        "running (1)",
        "failed (1)",
        "best",
    ]
    assert len({str(trace.marker.symbol) for trace in figure.data}) == 7


def test_colour_is_the_logarithm_of_the_cost() -> None:
    study = study_of()
    completed = next(trace for trace in plot_study(study).data if trace.name.startswith("completed"))
    costs = [trial.value for trial in study.trials if trial.state.name == "COMPLETE"]
    assert list(completed.marker.color) == pytest.approx([math.log10(cost) for cost in costs if cost is not None])
    assert completed.marker.colorbar.title.text == "cost (seconds)"


def test_a_negative_objective_is_coloured_as_it_is() -> None:
    study = study_of(0)
    add_trial(study, 8, 0.1, "COMPLETE", value=-3.0)
    add_trial(study, 16, 0.1, "COMPLETE", value=2.0)
    assert list(plot_study(study).data[0].marker.color) == [-3.0, 2.0]
    assert plot_study_history(study).layout.yaxis.type is None


def test_a_reason_is_shown_as_text() -> None:
    pruned = next(trace for trace in plot_study(study_of()).data if trace.name.startswith("pruned before"))
    assert "&lt;b&gt;40 s&lt;/b&gt;" in pruned.customdata[0]


def test_the_history_counts_what_pruned_trials_spent() -> None:
    study = study_of(0)
    add_trial(study, 8, 0.1, "COMPLETE", value=4.0, reports={100: 1.0})
    add_trial(study, 8, 0.2, "PRUNED", reports={50: 1.0})
    add_trial(study, 8, 0.3, "COMPLETE", value=5.0, reports={200: 1.0})
    add_trial(study, 8, 0.4, "COMPLETE", value=3.0, reports={10: 1.0})
    add_trial(study, 8, 0.5, "PRUNED", reports={40: 1.0})
    history = history_data(study_data(study))
    assert [(point.spent, point.value, point.best) for point in history.points] == [
        (100.0, 4.0, 4.0),
        (350.0, 5.0, 4.0),
        (360.0, 3.0, 3.0),
    ]
    assert history.spent == 400.0
    line = plot_study_history(study).data[0]
    assert (line.x[-1], line.y[-1]) == (400.0, 3.0)


def test_trials_are_counted_where_one_reported_nothing() -> None:
    study = study_of(0)
    add_trial(study, 8, 0.1, "COMPLETE", value=4.0)
    add_trial(study, 8, 0.3, "COMPLETE", value=5.0, reports={200: 1.0})
    history = history_data(study_data(study))
    assert [point.spent for point in history.points] == [1.0, 2.0]
    assert plot_study_history(study).layout.xaxis.title.text == "trials ended"


def test_a_maximised_objective_improves_upwards() -> None:
    study = optuna.create_study(direction="maximize")
    for value in (1.0, 3.0, 2.0):
        add_trial(study, 8, 0.1, "COMPLETE", value=value)
    assert [point.best for point in history_data(study_data(study)).points] == [1.0, 3.0, 3.0]


@pytest.mark.parametrize("n_completed", [0, 1])
def test_little_data_still_renders(n_completed: int) -> None:
    study = study_of(n_completed)
    assert plot_study(study, plan_of()).to_json()
    assert plot_study(study).to_json()
    assert plot_study_history(study).to_json()
