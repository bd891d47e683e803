"""A loop with Accelerate, on the handwritten digits of scikit-learn."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

accelerator, criterion = Accelerator(), nn.CrossEntropyLoss()
digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train_data, test_data = random_split(dataset, [1_397, 400], torch.Generator().manual_seed(0))
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train_loader, test_loader = DataLoader(train_data, 32, shuffle=True), DataLoader(test_data, 400)
model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, train_loader, test_loader)


def train(loader, epochs):
    for images, labels in (batch for _ in range(epochs) for batch in loader):
        optimizer.zero_grad()
        accelerator.backward(criterion(model(images), labels))
        optimizer.step()


# The end of your own code: in place of train(train_loader, epochs=20) comes what follows.
import batchopt
from batchopt.integrations.accelerate import apply_plan, task_from_accelerator

task = task_from_accelerator(
    accelerator, model, optimizer, train_loader, lambda net, b: criterion(net(b[0]), b[1]), eval_loader=test_loader
)
report = batchopt.probe(task, examples=60_000)
forecast = batchopt.Forecast.fit(report)
plan = forecast.plan(batchopt.ReachLoss(0.15))
print(plan)
train(apply_plan(plan, accelerator, optimizer, train_loader), epochs=1)
batchopt.write_report("out/report.html", report=report, forecast=forecast, plan=plan)
loss = task.loss(model.eval(), next(iter(test_loader))).item()
print(f"ended at a loss of {loss:.3g}, predicted {plan.loss}: see out/report.html")
