"""What a study is about, kept in its attributes."""

from __future__ import annotations

import optuna
import pytest
from forecasting.synthetic import true_law
from landscape import GOAL, forecast_of

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.parameters import Log2
from batchopt.search.settings import FORECAST_KEY, SETTINGS_KEY, Given, StudySettings, find, fingerprint, remember
from batchopt.step_cost import StepCost

pytestmark = pytest.mark.optuna
WHOLE = Given(forecast_of(true_law()), GOAL, "batch_size", "lr")
PRIOR = forecast_of(true_law()).constant


def test_the_study_holds_what_was_given(tmp_path: object) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s")
    remember(study, WHOLE)
    again = optuna.load_study(storage=storage, study_name="s")
    known = find(again, Given())
    assert known.settings == StudySettings(GOAL, "batch_size", False, "lr")
    assert known.forecast == PRIOR
    assert all(len(str(value)) < 2_045 for value in again.user_attrs.values())


@pytest.mark.parametrize(
    "goal",
    [
        ReachLoss(0.25),
        ReachLoss(0.25, least=("steps", "examples")),
        ReachLoss(0.25, least=StepCost(1.0, 2.0, unit="$", largest_batch_size=64)),
        LowestLoss(within=3, of="examples"),
    ],
)
def test_goals_survive_the_study(goal: ReachLoss | LowestLoss) -> None:
    study = optuna.create_study()
    remember(study, Given(None, goal, Log2("size"), "lr"))
    settings = find(study, Given()).settings
    assert settings.goal == goal
    assert settings.exponent
    assert settings.read({"size": 5, "lr": 0.1}) == (32, 0.1)


def test_what_is_found_nowhere() -> None:
    study = optuna.create_study()
    with pytest.raises(EvidenceError, match="goal and batch_size must be given, or be found in the study"):
        find(study, Given(learning_rate="lr"))
    remember(study, Given(learning_rate="lr"))
    assert study.user_attrs == {}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (Given(goal=ReachLoss(0.1)), "goal must be the one"),
        (Given(batch_size="bs"), "batch_size must be the one"),
        (Given(batch_size=Log2("batch_size")), "batch_size as an exponent must be the one"),
        (Given(learning_rate="rate"), "learning_rate must be the one"),
    ],
)
def test_a_study_keeps_its_goal_and_names(given: Given, what: str) -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    with pytest.raises(EvidenceError, match=what):
        find(study, given)


def test_the_first_forecast_stays_and_a_given_one_is_used() -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    other = forecast_of(true_law(b_mid=7.0))
    remember(study, Given(other))
    assert find(study, Given()).forecast == PRIOR
    assert find(study, Given(other)).forecast == other.constant


def test_a_damaged_forecast_is_said_so() -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    study.set_user_attr(FORECAST_KEY, "deadbeef:3")
    with pytest.raises(EvidenceError, match=r"attribute batchopt:forecast cannot be read .*: pass the forecast again"):
        find(study, Given())


def test_a_damaged_piece_of_a_forecast_is_said_so() -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    first = next(key for key in study.user_attrs if key.startswith(f"{FORECAST_KEY}:") and key.endswith(":0"))
    study.set_user_attr(first, study.user_attrs[first][:-3])
    with pytest.raises(EvidenceError, match=r"attribute batchopt:forecast cannot be read .*: pass the forecast again"):
        find(study, Given())
    assert find(study, WHOLE).forecast == PRIOR


def test_a_goal_of_any_length_is_held_in_pieces() -> None:
    goal = ReachLoss(0.25, least=StepCost(1.0, 2.0, unit="u" * 3_000))
    study = optuna.create_study()
    remember(study, Given(None, goal, "batch_size", "lr"))
    assert find(study, Given()).settings.goal == goal
    assert all(len(str(value)) < 2_045 for value in study.user_attrs.values())


def test_two_workers_that_write_at_once_leave_one_whole_forecast() -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    first = study.user_attrs[FORECAST_KEY]
    # The second worker looked before the first had written.
    fresh = optuna.create_study()
    remember(fresh, Given(forecast_of(true_law(b_mid=7.0))))
    for key, value in fresh.user_attrs.items():
        study.set_user_attr(key, value)
    study.set_user_attr(FORECAST_KEY, first)
    assert find(study, Given()).forecast == PRIOR


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"forecast must be a batchopt\.Forecast or None, got str"):
        Given("forecast.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"goal must be one of batchopt\.ReachLoss"):
        Given(goal=0.25)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must name two parameters, got 'x' for both"):
        Given(batch_size=Log2("x"), learning_rate="x")


def test_parameters_that_are_no_setting() -> None:
    settings = StudySettings(GOAL, "batch_size", False, "lr")
    assert settings.read({"batch_size": 8}) is None
    with pytest.raises(EvidenceError, match=r"a positive number, got -1\.0 \(parameters 'batch_size' and 'lr'\)"):
        settings.read({"batch_size": 8, "lr": -1.0})
    assert SETTINGS_KEY.startswith("batchopt:")


def test_another_forecast_than_the_study_was_begun_with_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study()
    remember(study, WHOLE)
    assert find(study, WHOLE).forecast == PRIOR
    assert not [record for record in caplog.records if record.name.startswith("batchopt")]
    other = Given(forecast_of(true_law(), spread=0.2))
    for _ in range(2):
        assert other.forecast is not None
        assert find(study, other).forecast == other.forecast.constant
    (record,) = [record for record in caplog.records if record.name.startswith("batchopt")]
    assert "was begun with another forecast" in record.message
    assert other.forecast is not None
    assert fingerprint(other.forecast.constant.to_json()) in record.message
