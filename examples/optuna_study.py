"""An Optuna study as people have it: a choice of batch sizes, reports at epochs, a validation loss to minimise."""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train_data, val_data = random_split(dataset, [1_397, 400], torch.Generator().manual_seed(0))
criterion, EPOCHS = nn.CrossEntropyLoss(), 10


def objective(trial):
    batch_size = trial.suggest_categorical("batch_size", [16, 32, 64, 128, 256])
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for epoch in range(EPOCHS):
        for images, labels in DataLoader(train_data, batch_size, shuffle=True):
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        loss = sum(criterion(model(x), y).item() for x, y in DataLoader(val_data, 400))
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


# The end of your own code: in place of create_study() and study.optimize(objective) comes what follows.
import batchopt

goal = batchopt.LowestLoss(EPOCHS * len(train_data), of="examples")
sampler = batchopt.TradeoffSampler(goal=goal, batch_size="batch_size", learning_rate="lr", seed=0)
study = optuna.create_study(sampler=sampler, pruner=batchopt.TradeoffPruner())
study.optimize(batchopt.reports_in_examples(objective, lambda epoch, _: (epoch + 1) * len(train_data)), n_trials=30)
batchopt.write_report("out/report.html", study=study)
print(*batchopt.search.explain(study, last=1), "see out/report.html", sep="\n")
