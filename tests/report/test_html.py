"""The page: everything that was given, nothing else, and nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import optuna
import plotly.offline
import pytest
from visualization.samples import Forecaster, add_trial, plan_of, rising_schedule, study_of

from batchopt import _codec
from batchopt.evidence import LossCurve, ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import BestMetric, LowestLoss, ReachLoss, ReachMetric
from batchopt.planning.plan import FIRST_REASON, Plan
from batchopt.report import Comparison, render_report, write_report
from batchopt.report.captions import HOW_TO_READ
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate, log_normal

SECTIONS = ["Plan", "Schedule", "When not to trust it", "Predicted beside measured", "Forecast", "Probe", "Study"]
MEASURED = LossCurve((0, 2_000, 80_000), (2.3, 1.2, 0.7))
_VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser would see: headings, text outside scripts, addresses, and whether tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def rows() -> tuple[Comparison, ...]:
    predicted = log_normal(800.0, 0.1)
    return (Comparison("steps", predicted, 960.0), Comparison("seconds", predicted, 8_000.0))


@pytest.fixture(scope="session")
def whole(report: ProbeReport, plan: Plan, rows: tuple[Comparison, ...]) -> str:
    forecaster = cast("Forecast", Forecaster())
    return render_report(
        report=report, forecast=forecaster, plan=plan, study=study_of(), training=rows, measured=MEASURED
    )


def test_what_to_do_comes_first_and_then_what_it_rests_on(whole: str) -> None:
    page = Page(whole)
    assert page.headings == SECTIONS
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_link_leads_to_a_section_of_the_page(whole: str) -> None:
    page = Page(whole)
    assert len(page.addresses) == len(SECTIONS)
    assert all(address.startswith("#") and address[1:] in page.ids for address in page.addresses)


def test_the_page_needs_nothing_else(whole: str) -> None:
    assert re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", whole) is None
    assert "@import" not in re.sub(r"<script>.*?</script>", "", whole, flags=re.DOTALL)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', whole)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")


def test_plotly_is_there_once(whole: str) -> None:
    figures = len(re.findall("<figure>", whole))
    assert figures == len(HOW_TO_READ)
    assert whole.count('id="plotly"') == 1
    assert Page(whole).scripts == figures + 2, "the data of each, plotly, and what draws them"


def test_the_script_that_is_packed_is_plotly(whole: str) -> None:
    found = re.search(r'id="plotly" data-bytes="(\d+)">([^<]+)</script>', whole)
    assert found is not None
    packed = base64.b85decode(found[2].replace("/", "<"))
    assert gzip.decompress(packed[: int(found[1])]).decode() == plotly.offline.get_plotlyjs()


def test_the_page_draws_itself_in_a_browser(whole: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no browser is installed")
    (tmp_path / "report.html").write_text(whole)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
    address = (tmp_path / "report.html").as_uri()
    drawn = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=300, check=True).stdout
    for name in HOW_TO_READ:
        assert re.search(rf'id="figure-{name}" class="figure js-plotly-plot"', drawn), name


def test_every_figure_says_how_to_read_it(whole: str) -> None:
    text = Page(whole).text
    assert all(caption in text for caption in HOW_TO_READ.values())


def test_numbers_of_the_flow_are_on_the_page(whole: str, plan: Plan) -> None:
    text = Page(whole).text
    for words in (
        "short runs, small batch 40.1k 22% 1,250 11 s",
        "all, of the budget 179k 90% of 200k 2,112 31.3 s",
        "more than 300 (unresolved)",
        "For a loss of 0.6 in the fewest seconds: train with batch size 128 at a peak learning rate of 0.113 (wsd)",
        "pruned before compute 5 pruned while running 5 completed 12",
        "steps 800 (679 to 943) 960 +20% outside",
        "seconds 800 (679 to 943) 8,000 +900% outside",
        "40,000 to 90,000 256 0.16",
        *plan.reasons,
    ):
        assert words in text, words


def test_doubts_are_said(whole: str) -> None:
    text = Page(whole).text
    assert Forecaster.doubts[0] in text
    assert "The simple noise scale at loss 0.75 is more than 300 (unresolved), from 2,000 examples." in text
    assert "of a single run by its own schedule" in text


@pytest.mark.usefixtures("few_points")
def test_without_doubts_it_says_so(forecast: Forecast) -> None:
    clean = replace(forecast, doubts=())
    assert "No reading is in doubt." in Page(render_report(forecast=clean)).text


@pytest.mark.parametrize("part", ["probe", "plan", "schedule", "study", "training"])
def test_what_is_missing_is_left_out(part: str, report: ProbeReport, plan: Plan, rows: tuple[Comparison, ...]) -> None:
    clean = replace(report, noise_scales=report.noise_scales[:3])
    pages = {
        "probe": (render_report(report=clean), ["Probe"]),
        "plan": (render_report(plan=plan), ["Plan", "Schedule"]),
        "schedule": (render_report(schedule=rising_schedule()), ["Schedule"]),
        "study": (render_report(study=study_of(2)), ["Study"]),
        "training": (render_report(training=rows), ["Predicted beside measured"]),
    }
    text, headings = pages[part]
    assert Page(text).headings == headings


def test_unresolved_readings_are_said_without_a_forecast(report: ProbeReport) -> None:
    assert Page(render_report(report=report)).headings == ["When not to trust it", "Probe"]


def test_nothing_given_is_a_page_too() -> None:
    page = Page(render_report())
    assert page.headings == []
    assert page.scripts == 0
    assert "Nothing was given" in page.text


def test_another_schedule_does_not_borrow_the_plans_cost(plan: Plan) -> None:
    text = Page(render_report(plan=plan)).text
    assert re.search(r" steps, predicted to cost .{1,40} seconds until the loss is reached\.", text)
    other = replace(rising_schedule(), examples=95_000)
    assert "steps, predicted to cost" not in Page(render_report(plan=plan, schedule=other)).text


def test_text_from_records_is_shown_as_text(report: ProbeReport, plan: Plan) -> None:
    attack = "</script><img src=x onerror=alert(1)>"
    hostile = replace(
        report,
        stopped=attack,
        spending=(replace(report.spending[0], part=attack),),
        noise_scales=(replace(report.noise_scales[0], kind=attack),),
        provenance=replace(report.provenance, device=attack),
    )
    costly = replace(plan, reasons=(attack,), price=StepCost(1.0, 1.0, unit=attack))
    study = study_of(0)
    add_trial(study, 8, 0.1, "PRUNED", reason=attack)
    text = render_report(report=hostile, plan=costly, study=study)
    assert "<img" not in text
    page = Page(text)
    assert page.open == []
    assert page.text.count(attack) >= 5


def test_a_budget_shows_its_loss(plan: Plan) -> None:
    text = Page(render_report(plan=replace(plan, goal=LowestLoss(30.0)))).text
    assert "the lowest loss within 30 s" in text
    assert "loss at the end of the schedule 0.55 (0.5 to 0.6)" in text


def test_a_goal_in_a_metric_is_said_with_what_is_predicted_of_it(plan: Plan) -> None:
    metrics = {"accuracy": Estimate(0.93, 0.9, 0.95, True), "top-5 error": Estimate(0.02, 0.01, 0.03, False)}
    reach = replace(plan, goal=ReachLoss(0.59), asked=ReachMetric("accuracy", 0.93), metrics=metrics)
    text = Page(render_report(plan=reach)).text
    assert text.count("accuracy 0.93 (a loss of 0.59) in the fewest seconds") == 2  # at the top, and as the goal
    assert "accuracy at the end 0.93 (0.9 to 0.95)" in text
    assert "top-5 error at the end 0.02 (0.01 to 0.03, unresolved)" in text
    best = replace(plan, goal=LowestLoss(30.0), asked=BestMetric("accuracy", 30.0), metrics=metrics)
    text = Page(render_report(plan=best)).text
    assert "the best accuracy within 30 s" in text
    assert "lowest loss" not in text


def test_seconds_stand_beside_another_cost(plan: Plan) -> None:
    text = Page(render_report(plan=replace(plan, price=StepCost(1.0, 0.0, unit="steps")))).text
    assert "cost (steps)" not in text, "they have a row and a column of their own"
    assert "batch size learning rate steps examples seconds 16" in text


def test_the_page_opens_with_what_to_do_its_cost_and_how_sure_it_is(plan: Plan) -> None:
    doubt = "The loss at the end of the schedule is unresolved: 0.5."
    reasons = (doubt, f"{FIRST_REASON}falls.", "Half the batch takes longer.")
    text = Page(render_report(plan=replace(plan, reasons=reasons))).text
    places = [text.index(words) for words in ("What to do", "What it costs", "How sure", doubt, "Why", reasons[2])]
    assert places == sorted(places)
    assert "1 thing speaks against trusting it; see below." in text
    assert "Nothing in the evidence speaks against the plan." in Page(render_report(plan=plan)).text


def test_a_schedule_that_stays_as_it_is_has_no_figure() -> None:
    constant = render_report(schedule=Schedule.constant(64, examples=6_400, learning_rate=0.1))
    assert "<figure" not in constant
    assert 'id="plotly"' not in constant
    assert "100 steps" in Page(constant).text


def test_a_study_whose_settings_are_unknown_is_said() -> None:
    study = optuna.create_study()
    add_trial(study, 8, 0.1, "COMPLETE", value=1.0, names=("size", "rate"))
    assert "The study cannot be shown: which parameter is the batch size?" in Page(render_report(study=study)).text


def test_two_objectives_show_their_front() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    parameters = {
        "bs": optuna.distributions.IntDistribution(1, 64),
        "lr": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    study.add_trial(
        optuna.trial.create_trial(values=[10.0, 20.0], params={"bs": 8, "lr": 0.5}, distributions=parameters)
    )
    text = Page(render_report(study=study)).text
    assert "Pareto front" in text
    assert HOW_TO_READ["study-history"] not in text


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_report(path, schedule=rising_schedule())
    before = path.read_text()

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(_codec.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, plan=plan_of())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_records_give_the_same_page(plan: Plan) -> None:
    assert render_report(plan=plan) == render_report(plan=plan)


@pytest.mark.usefixtures("few_points")
def test_the_whole_flow_renders(report: ProbeReport, forecast: Forecast, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report=report, forecast=forecast, plan=plan_of(), study=study_of(1))
    page = Page(path.read_text(encoding="utf-8"))
    assert page.headings == [name for name in SECTIONS if name != "Predicted beside measured"]
    assert path.stat().st_size < 2_000_000
