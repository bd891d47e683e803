"""Optuna: a sampler, a pruner and a check that know the trade-off law, with their evidence kept in the study."""

from batchopt.search.checking import check
from batchopt.search.in_examples import reports_in_examples
from batchopt.search.parameters import Log2, milestones
from batchopt.search.pruner import TradeoffPruner
from batchopt.search.sampler import TradeoffSampler
from batchopt.search.summary import StudySummary, explain, summarise

__all__ = [
    "Log2",
    "StudySummary",
    "TradeoffPruner",
    "TradeoffSampler",
    "check",
    "explain",
    "milestones",
    "reports_in_examples",
    "summarise",
]
