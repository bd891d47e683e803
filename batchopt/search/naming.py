"""Whether an objective suggests batch size and learning rate by the names that its study expects, as it reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.search.parameters import EXPONENT_PREFIX, batch_size_axis, holds_exponent
from batchopt.search.saying import warn_once
from batchopt.search.search_space import last_distributions

if TYPE_CHECKING:
    import optuna

    from batchopt.search.settings import StudySettings

USUAL = (
    ("batchsize", "bs", "bsz", "batch", "minibatchsize", "minibatch", "trainbatchsize"),
    ("learningrate", "lr", "eta", "rate", "initiallr", "initlr", "baselr", "maxlr", "peaklr", "lr0"),
)
"""Names that batch size and learning rate usually have, without underscores."""
ROLES = (("the batch size", "batch_size"), ("the learning rate", "learning_rate"))
"""What they are, and the arguments that name them."""
CLOSE = 0.85
"""Least likeness, by difflib, of a name that is taken for a misspelt one: `learning_rate_decay` is another thing."""
LARGEST_DOUBTED = 20
"""Batch sizes up to here may be exponents: 2**20 is a million."""


def warn_of_missing(study: optuna.Study, settings: StudySettings, trial: optuna.Trial, reason: str) -> None:
    """Say once why `check` cannot judge a trial that lacks a parameter: another name, or a check that comes too early.

    Where neither the trial nor those before it tell which, nothing is said: the next trial will.
    """
    other = [name for name in trial.params if name not in settings.names]
    if not other or last_distributions(study, settings) is not None:
        warn_once(
            f"Study {study.study_name}: trial {trial.number}: {reason} Call check after both were suggested.",
            about=f"{study.study_name} early check",
        )
    elif likely(settings, trial.params) or trained_without(study, settings) is not None:
        warn_of_names(study, settings, trial.params)


def warn_of_names(study: optuna.Study, settings: StudySettings, params: Iterable[str]) -> None:
    """Say once that trials lack a parameter that the study expects; not where others have both."""
    if last_distributions(study, settings) is None:
        warn_once(f"Study {study.study_name}: {names_differ(settings, params)}", about=f"{study.study_name} names")


def names_differ(settings: StudySettings, params: Iterable[str]) -> str:
    """What the study expects, what its trials have, which of that is probably meant, and the remedy."""
    having = tuple(params)
    expected = " and ".join(map(repr, settings.names))
    told = f"the study expects the parameters {expected}, but its trials have {_listed(having)}, so the law neither "
    return f"{told}proposes nor judges them. {_remedy(settings, likely(settings, having))}"


def likely(settings: StudySettings, params: Iterable[str]) -> Mapping[str, str]:
    """Parameters that are probably meant, by the name that the study expects of them; none where none is obvious."""
    having = tuple(params)
    plain = {_plain(name): name for name in having if name not in settings.names}
    found: dict[str, str] = {}
    for expected, usual in zip(settings.names, USUAL, strict=True):
        close = get_close_matches(_plain(expected), plain, n=1, cutoff=CLOSE)
        meant = [plain[name] for name in (*usual, *close) if name in plain]
        if meant and expected not in having:
            found[expected] = meant[0]
    return found


def maybe_exponents(settings: StudySettings, distribution: BaseDistribution) -> str | None:
    """What to do where values that are read as batch sizes may be exponents; None where they hardly are.

    Nothing is guessed. Exponents are not searched in a logarithm, nor do choices happen to be powers of two.
    """
    if settings.exponent or getattr(distribution, "log", False):
        return None
    try:
        sizes = batch_size_axis(distribution, exponent=False).sizes
    except EvidenceError:  # of which the law's own line tells
        return None
    powers = isinstance(distribution, CategoricalDistribution) and all(math.log2(size).is_integer() for size in sizes)
    if len(sizes) < 2 or sizes[-1] > LARGEST_DOUBTED or powers:
        return None
    return (
        f"values from {sizes[0]:.0f} to {sizes[-1]:.0f} are read as batch sizes; if they are exponents, name it "
        f"Log2({settings.batch_size!r}), in another study."
    )


def warn_of_exponents(study: optuna.Study, settings: StudySettings, distribution: BaseDistribution) -> None:
    """Say that once."""
    told = maybe_exponents(settings, distribution)
    if told is not None:
        warn_once(f"Study {study.study_name}: {told}", about=f"{study.study_name} exponents")


def trained_without(study: optuna.Study, settings: StudySettings) -> FrozenTrial | None:
    """The latest trial that trained, in a study none of whose trials has both parameters; None in other studies."""
    if last_distributions(study, settings) is not None:
        return None
    trials = reversed(study._storage.get_all_trials(study._study_id, deepcopy=False))
    return next((t for t in trials if t.state == TrialState.COMPLETE or t.last_step is not None), None)


def _remedy(settings: StudySettings, meant: Mapping[str, str]) -> str:
    if not meant:
        return "Suggest them under the names that the study expects, or start another study with the names they have."
    roles = [(meant[name], *role) for name, role in zip(settings.names, ROLES, strict=True) if name in meant]
    guess = " and ".join(f"{name!r} is probably {what}" for name, what, _ in roles)
    given = " and ".join(f"{argument}={_as_given(settings, name, argument)}" for name, _, argument in roles)
    return f"{guess}: suggest {_listed(meant)} in its place, or start another study with {given}."


def _as_given(settings: StudySettings, name: str, argument: str) -> str:
    exponent = argument == "batch_size" and settings.exponent and not holds_exponent(name)
    return f"Log2({name!r})" if exponent else repr(name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().removeprefix(EXPONENT_PREFIX) if letter.isalnum())
