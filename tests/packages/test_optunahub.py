"""The package for the OptunaHub registry, by the registry's rules."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import yaml

import batchopt

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "packages" / "optunahub"
PACKAGE = REGISTRY / "samplers" / "batchopt"
README = (PACKAGE / "README.md").read_text()


def load() -> ModuleType:
    optunahub = pytest.importorskip("optunahub")
    module: ModuleType = optunahub.load_local_module("samplers/batchopt", registry_root=str(REGISTRY))
    return module


@pytest.fixture(scope="module")
def front_matter() -> dict[str, Any]:
    matter = re.match(r"---\n(.*?)\n---\n", README, re.DOTALL)
    assert matter is not None
    fields: dict[str, Any] = yaml.safe_load(matter[1])
    return fields


def test_the_folder_holds_what_the_template_asks_for() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert files == {"LICENSE", "README.md", "__init__.py", "example.py", "requirements.txt"}
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_front_matter_is_complete(front_matter: dict[str, Any]) -> None:
    assert set(front_matter) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert all(front_matter.values())
    assert {"sampler", "pruner"} <= set(front_matter["tags"])
    assert all(isinstance(text, str) for text in [*front_matter["tags"], *front_matter["optuna_versions"]])
    assert front_matter["license"] == "MIT License"


def test_the_readme_has_the_sections_in_their_order_and_no_html() -> None:
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == ["Abstract", "APIs", "Installation", "Example", "Others"]
    assert re.findall(r"<[a-zA-Z/!]", README) == []


def test_the_names_are_those_of_batchopt_and_described() -> None:
    module = load()
    for name in module.__all__:
        here = batchopt.search.explain if name == "explain" else getattr(batchopt, name)
        assert getattr(module, name) is here
        assert f"`{name}(" in README


def test_arguments_in_the_readme_are_those_of_the_classes() -> None:
    module = load()
    for name in ("TradeoffSampler", "TradeoffPruner"):
        told = re.search(rf"^- `{name}\((.*?)\)`", README, re.MULTILINE)
        assert told is not None
        scope: dict[str, Any] = {}
        exec(f"def told({told[1]}): ...", scope)
        arguments = getattr(module, name).__init__.__annotations__.keys() - {"return"}
        assert scope["told"].__code__.co_varnames == tuple(
            name for name in getattr(module, name).__init__.__code__.co_varnames[1:] if name in arguments
        )


def test_without_batchopt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "batchopt", None)
    with pytest.raises(ModuleNotFoundError, match="run `pip install batchopt`"):
        load()


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import optunahub

    monkeypatch.setattr(optunahub, "load_module", lambda package: load())
    example = runpy.run_path(str(PACKAGE / "example.py"))
    module, goal = example["module"], example["GOAL"]
    sampler = module.TradeoffSampler(goal=goal, batch_size="batch_size", learning_rate="lr", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"batch_size": 24, "lr": 0.6})
    study.optimize(example["objective"], n_trials=1)
    assert study.best_value < example["MAX_EXAMPLES"]
    study.pruner = module.TradeoffPruner()
    study.optimize(example["objective"], n_trials=2)
    assert "FAIL" not in {trial.state.name for trial in study.trials}
    assert module.explain(study)[0].startswith("batchopt reads the objective as the cost (examples) to reach loss 0.3")


def test_the_code_of_the_readme_is_python() -> None:
    code = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(code) == 1
    compile(code[0], "README.md", "exec")
