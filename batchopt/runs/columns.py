"""What the columns of a log hold, by the names that loggers give them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping

from batchopt.errors import EvidenceError

NAMES: Mapping[str, tuple[str, ...]] = {
    "run": ("run", "run_id", "run_name", "name", "experiment"),
    "steps": ("steps", "step", "global_step", "trainer_global_step", "train_global_step", "iteration", "iterations"),
    "examples": ("examples", "examples_seen", "samples", "samples_seen", "num_examples", "sequences"),
    "loss": ("loss",),
    "training_loss": ("training_loss", "train_loss", "loss_train", "loss_training", "train_loss_step"),
    "evaluation_loss": (
        "evaluation_loss", "eval_loss", "val_loss", "valid_loss", "validation_loss", "test_loss", "dev_loss",
        "loss_eval", "loss_val", "loss_valid", "loss_validation", "loss_test",
    ),
    "batch_size": ("batch_size", "batchsize", "bs", "global_batch_size"),
    "learning_rate": ("learning_rate", "lr", "train_learning_rate", "train_lr"),
    "peak_learning_rate": ("peak_learning_rate", "peak_lr", "max_learning_rate", "max_lr"),
    "learning_rate_schedule": (
        "learning_rate_schedule", "lr_schedule", "schedule", "lr_scheduler_type", "lr_scheduler",
    ),
    "horizon_steps": ("horizon_steps", "max_steps", "total_steps"),
    "horizon_examples": ("horizon_examples",),
    "warmup_steps": ("warmup_steps", "num_warmup_steps"),
    "warmup_examples": ("warmup_examples",),
    "cooldown": ("cooldown",),
    "seed": ("seed",),
    "diverged": ("diverged",),
    "stopped": ("stopped",),
}  # fmt: skip
"""What a log may hold, and the names by which it is known, spelt as `plain` spells them."""
POINT = ("steps", "examples", "loss", "training_loss", "evaluation_loss", "learning_rate")
"""What may differ from point to point of a run."""
SETTINGS = ("learning_rate", *(name for name in NAMES if name != "run" and name not in POINT))
"""What is of a whole run."""
COUNTS_CALLS = "_step"
"""Weights & Biases counts its own calls in this column, so any other count is better."""
NEEDED = (
    ("batch_size",),
    ("learning_rate", "peak_learning_rate"),
    ("steps", "examples"),
    ("loss", "training_loss", "evaluation_loss"),
)
"""Of each of these a run needs one."""
NEARLY = 0.85
"""Share of letters, by `difflib`, from which a name is taken for a slip of a known one that is needed and missing. Set
by hand: one letter wrong in seven."""
PART_OF_BATCH = re.compile(
    r"(.*_)?(per_device_(?!eval).*batch.*|gradient_accumulation_steps|accumulate_grad_batches|world_size|num_devices)"
)
"""Columns that say that a step may see more examples than one device does at once, spelt as `plain` spells them."""


def plain(name: str) -> str:
    """A name in small letters, all else than letters and digits as single underscores.

    Example:
        >>> plain("Loss/train"), plain("trainer/global_step")
        ('loss_train', 'trainer_global_step')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def check_names(given: Iterable[str], allowed: Iterable[str], *, what: str) -> None:
    """Raise unless names are among those that may be given.

    Raises:
        EvidenceError: one is not.
    """
    allowed = tuple(allowed)
    for name in given:
        if name not in allowed:
            raise EvidenceError(f"{what} must be among {', '.join(allowed)}, got {name!r}")


def recognise(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Which column holds what: our name -> the log's.

    Args:
        names: of the log's columns.
        given: our name -> the log's, where the caller says so.

    Raises:
        EvidenceError: a given column is not there; two columns hold the same; steps are calls of a logger.

    Example:
        >>> recognise(["global_step", "train/loss", "accuracy"], {})
        {'steps': 'global_step', 'training_loss': 'train/loss'}
    """
    names = list(dict.fromkeys(names))
    check_names(given, NAMES, what="columns")
    for ours, theirs in given.items():
        if theirs not in names:
            raise EvidenceError(f"there is no column {theirs!r} for {ours!r}: the columns are {listed(names)}")
    taken, found = set(given.values()), dict(given)
    if {"steps", "examples"} & set(given):
        taken |= {name for name in names if _known(name) in ("steps", "examples")} - set(given.values())
    for ours in NAMES:
        own = [name for name in names if name not in taken and _known(name) == ours]
        if len(own) > 1 and ours == "steps":
            own = [name for name in own if name.lower() != COUNTS_CALLS]
        if ours in found or not own:
            continue
        if len(own) > 1:
            raise EvidenceError(
                f"columns {own[0]!r} and {own[1]!r} both stand for {ours}: say which one counts, by "
                f"{as_column(ours, own[0])} for example"
            )
        found[ours] = own[0]
    _check_sure(found, given)
    return found


def _check_sure(found: dict[str, str], given: Mapping[str, str]) -> None:
    """Drop a count of calls beside examples; raise where it is the only count, or two columns are the training loss."""
    if found.get("steps", "").lower() == COUNTS_CALLS and "steps" not in given:
        if "examples" not in found:
            raise counts_calls(found["steps"])
        del found["steps"]
    if {"loss", "training_loss", "evaluation_loss"} <= found.keys() and not {"loss", "training_loss"} & given.keys():
        raise EvidenceError(
            f"columns {found['loss']!r} and {found['training_loss']!r} both stand for training_loss, beside "
            f"{found['evaluation_loss']!r}: say which one counts, by {as_column('training_loss', found['loss'])} for "
            "example"
        )


def counts_calls(name: str) -> EvidenceError:
    """What is said of steps that a logger counted."""
    return EvidenceError(
        f"{name!r} of Weights & Biases counts calls of its log, which need not be steps of the optimizer: log the step "
        f"or the examples beside the loss, or say what it counts by {as_column('steps', name)}, or examples={name}"
    )


def check_needed(names: Iterable[str], found: Mapping[str, str], given: Container[str]) -> None:
    """Raise where a column that is not understood was likely meant to be, or has no sure unit.

    Args:
        names: of the log's columns.
        found: our name -> the log's.
        given: our names of what is said beside the log.

    Raises:
        EvidenceError: a name is a slip of one that is needed and missing; a horizon does not say what it counts.
    """
    names = [name for name in dict.fromkeys(names) if name not in found.values()]
    horizons = ("horizon_steps", "horizon_examples")
    unsure = next((name for name in names if plain(name) == "horizon"), None)
    if unsure is not None and not any(name in found or name in given for name in horizons):
        raise EvidenceError(
            f"column {unsure!r} does not say whether it counts steps or examples: say so by "
            f"{as_column('horizon_steps', unsure)}, or {as_column('horizon_examples', unsure)}"
        )
    missing = [kinds for kinds in NEEDED if not any(name in found or name in given for name in kinds)]
    spelt = {alias: ours for kinds in missing for ours in kinds for alias in NAMES[ours]}
    for name in names:
        near = [] if _known(name) else difflib.get_close_matches(plain(name), spelt, n=1, cutoff=NEARLY)
        if near:
            raise EvidenceError(
                f"column {name!r} is not known, and looks like {near[0]!r}: rename it, or say what it is by "
                f"{as_column(spelt[near[0]], name)}"
            )


def is_named(name: str, *ours: str) -> bool:
    """Whether a column's name is a usual one for one of what we call `ours`."""
    return any(plain(name) in NAMES[each] for each in ours)


def as_column(ours: str, theirs: str = "...") -> str:
    """How it is said which column holds what, in Python and on the command line."""
    return f"columns={{{ours!r}: {theirs if theirs == '...' else repr(theirs)}}} or --column {ours}={theirs}"


def listed(names: Iterable[str]) -> str:
    """Names in a message, the first of many."""
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _known(name: str) -> str | None:
    return next((ours for ours in NAMES if is_named(name, ours)), None)
