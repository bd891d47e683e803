try:
    from batchopt import check
    from batchopt import Log2
    from batchopt import LowestLoss
    from batchopt import milestones
    from batchopt import ReachLoss
    from batchopt import StepCost
    from batchopt import TradeoffPruner
    from batchopt import TradeoffSampler
    from batchopt.search import explain
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: run `pip install batchopt`, which this package loads its classes from"
    ) from error


__all__ = [
    "Log2",
    "LowestLoss",
    "ReachLoss",
    "StepCost",
    "TradeoffPruner",
    "TradeoffSampler",
    "check",
    "explain",
    "milestones",
]
