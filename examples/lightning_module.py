"""A LightningModule, on the handwritten digits of scikit-learn."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
train_data, val_data = random_split(dataset, [1_397, 400], torch.Generator().manual_seed(0))
train_loader, val_loader = DataLoader(train_data, batch_size=32, shuffle=True), DataLoader(val_data, batch_size=400)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


model = Classifier()
# The end of your own code: in place of lightning.Trainer(max_epochs=20).fit(model, train_loader) comes what follows.
import batchopt
from batchopt.integrations.lightning import apply_plan, task_from_module

task = task_from_module(model, train_loader, eval_loader=val_loader)
report = batchopt.probe(task, examples=60_000)
forecast = batchopt.Forecast.fit(report)
plan = forecast.plan(batchopt.ReachLoss(0.15))
print(plan)
lightning.Trainer(max_epochs=1).fit(model, datamodule=apply_plan(plan, model, train_loader))
batchopt.write_report("out/report.html", report=report, forecast=forecast, plan=plan)
loss = model.training_step(next(iter(val_loader)), 0).item()
print(f"ended at a loss of {loss:.3g}, predicted {plan.loss}: see out/report.html")
