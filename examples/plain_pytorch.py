"""A plain PyTorch loop, on the handwritten digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train_data, test_data = random_split(dataset, [1_397, 400], torch.Generator().manual_seed(0))
train_loader = DataLoader(train_data, batch_size=32, shuffle=True)
test_loader = DataLoader(test_data, batch_size=400)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
criterion = nn.CrossEntropyLoss()


def train(loader, epochs):
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()


# The end of your own code: in place of train(train_loader, epochs=20) comes what follows.
import batchopt

task = batchopt.TrainingTask.from_dataloader(
    train_loader, eval_loader=test_loader, model=model, optimizer=optimizer, prior=(32, 1e-3),
    loss=lambda model, batch: criterion(model(batch[0]), batch[1]),
)  # fmt: skip
report = batchopt.probe(task, examples=60_000)
forecast = batchopt.Forecast.fit(report)
plan = forecast.plan(batchopt.ReachLoss(0.15))
print(plan)
result = batchopt.train(task, plan.schedule)
model = result.model
batchopt.write_report("out/report.html", report=report, forecast=forecast, plan=plan, measured=result.curve)
print(f"ended at a loss of {result.curve.losses[-1]:.3g}, predicted {plan.loss}: see out/report.html")
