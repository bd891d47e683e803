"""A Trainer of Transformers: a small language model that reads sums, like 3+4=7."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SYMBOLS = {symbol: k for k, symbol in enumerate("0123456789+=")}


def sums(count, seed):
    pairs = torch.randint(50, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [f"{a:02}+{b:02}={a + b:02}" for a, b in pairs]
    ids = torch.tensor([[SYMBOLS[symbol] for symbol in text] for text in texts])
    labels = torch.where(torch.arange(8) < 6, -100, ids)  # only the sum counts
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


train_data, eval_data = sums(4_000, seed=0), sums(400, seed=1)
config = LlamaConfig(vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config)
args = TrainingArguments(
    output_dir="out", save_strategy="no", report_to="none", disable_tqdm=True,
    per_device_train_batch_size=32, learning_rate=1e-3, num_train_epochs=10,
)  # fmt: skip
trainer = Trainer(model, args, train_dataset=train_data, eval_dataset=eval_data)

# The end of your own code: in place of trainer.train() comes what follows.
import batchopt
from batchopt.integrations.transformers import apply_plan, task_from_trainer

task = task_from_trainer(trainer)
report = batchopt.probe(task, examples=60_000)
forecast = batchopt.Forecast.fit(report)
plan = forecast.plan(batchopt.LowestLoss(40_000, "examples"))
trainer = Trainer(model, apply_plan(plan, args), train_dataset=train_data, eval_dataset=eval_data)
print(plan)
trainer.train()
batchopt.write_report("out/report.html", report=report, forecast=forecast, plan=plan)
print(f"ended at a loss of {trainer.evaluate()['eval_loss']:.3g}, predicted {plan.loss}: see out/report.html")
