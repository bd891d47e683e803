"""The cheapest batch size and learning rate for a small network on handwritten digits."""

from __future__ import annotations

import optuna
import optunahub
from sklearn.datasets import load_digits
import torch
from torch.nn.functional import cross_entropy


module = optunahub.load_module(package="samplers/batchopt")

# A step costs as much as 64 examples, and each of its examples 1: seconds would differ from run to run.
PRICE = module.StepCost(per_step=64.0, per_example=1.0, unit="examples")
GOAL = module.ReachLoss(0.3, least=PRICE)
MAX_EXAMPLES = 60_000
DIGITS = load_digits()
IMAGES = torch.tensor(DIGITS.data / 16, dtype=torch.float32)
LABELS = torch.tensor(DIGITS.target)


def objective(trial: optuna.Trial) -> float:
    batch_size = trial.suggest_int("batch_size", 4, 512, log=True)
    learning_rate = trial.suggest_float("lr", 1e-3, 3.0, log=True)
    module.check(trial)  # prunes what cannot win, before any compute

    generator = torch.Generator().manual_seed(trial.number)
    torch.manual_seed(trial.number)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    milestones = module.milestones(MAX_EXAMPLES)
    for step in range(1, MAX_EXAMPLES // batch_size + 1):
        batch = torch.randint(len(IMAGES), (batch_size,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(IMAGES[batch]), LABELS[batch]).backward()
        optimizer.step()
        if step * batch_size < milestones[0]:
            continue
        milestones = [milestone for milestone in milestones if milestone > step * batch_size]
        with torch.no_grad():
            loss = cross_entropy(model(IMAGES), LABELS).item()
        trial.report(loss, step=step * batch_size)
        if loss <= GOAL.loss:
            return float(PRICE.of_run(batch_size=batch_size, steps=step))
        if trial.should_prune() or not milestones:
            raise optuna.TrialPruned()
    raise optuna.TrialPruned()


if __name__ == "__main__":
    study = optuna.create_study(
        sampler=module.TradeoffSampler(
            goal=GOAL, batch_size="batch_size", learning_rate="lr", seed=0
        ),
        pruner=module.TradeoffPruner(),
    )
    study.optimize(objective, n_trials=20)
    print(*module.explain(study), sep="\n")
