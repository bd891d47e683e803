"""A Trainer as a task, and a plan as its arguments."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchopt import Forecast, LearningRateSchedule, LowestLoss, Schedule, Segment, measure_noise_scale, probe
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from batchopt.integrations.transformers import apply_plan, task_from_trainer  # noqa: E402

VOCABULARY, LENGTH = 20, 10


def tokens(count: int = 400) -> list[dict[str, Tensor]]:
    """Sequences that count up, of several lengths, padded."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        start, length = (int(torch.randint(n, (1,), generator=generator)) for n in (VOCABULARY, LENGTH - 4))
        ids = (start + torch.arange(LENGTH)) % VOCABULARY
        mask = (torch.arange(LENGTH) < length + 5).long()
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)})
    return found


def language_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def arguments(folder: Path, **changes: Any) -> Any:
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "per_device_train_batch_size": 8, "learning_rate": 3e-3, "weight_decay": 0.1, "max_steps": 5, "seed": 1,
    }  # fmt: skip
    return transformers.TrainingArguments(**settings | changes)


def trainer(
    folder: Path, *, model: Any = None, data: Any = None, kind: Any = None, more: Any = None, **changes: Any
) -> Any:
    return (kind or transformers.Trainer)(
        model=model or language_model(),
        args=arguments(folder, **changes),
        train_dataset=tokens() if data is None else data,
        **(more or {}),
    )


def test_a_step_is_the_trainers(tmp_path: Path) -> None:
    batch = 8
    data = tokens(batch)
    made = trainer(tmp_path, data=data, max_steps=1, lr_scheduler_type="constant", max_grad_norm=0.5)
    task = task_from_trainer(made)
    run = TrainingRun(task, learning_rate=3e-3, seed=0)
    run.step(batch)  # of all examples, in whatever order
    made.train()
    theirs, ours = (dict(model.named_parameters()) for model in (made.model, run.model))
    assert theirs.keys() == ours.keys()
    for name, parameter in theirs.items():
        # Adam's first step is the sign of the gradient, as far as that is above its epsilon.
        torch.testing.assert_close(ours[name].detach(), parameter.detach(), rtol=1e-4, atol=1e-5)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [language_model, gpt2])
def test_the_loss_is_the_trainers_to_the_last_token(make: Any, tmp_path: Path) -> None:
    made = trainer(
        tmp_path, model=make(), data=tokens(16), max_steps=1, lr_scheduler_type="constant", learning_rate=1e-12,
        per_device_train_batch_size=16, logging_steps=1,
    )  # fmt: skip
    task = task_from_trainer(made)
    first = TrainingRun(task, learning_rate=1e-12, seed=0).step(16)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(first, rel=1e-4)


def test_what_is_not_taken_over_is_said(tmp_path: Path) -> None:
    made = trainer(tmp_path, model=Classifier(), data=pictures(8), lr_scheduler_type="polynomial", warmup_steps=0.1,
                   neftune_noise_alpha=5.0)  # fmt: skip
    with pytest.warns(UserWarning, match=r"='polynomial', warmup_steps=0.1 of a run .*, neftune_noise_alpha=5"):
        assert task_from_trainer(made).learning_rate_schedule is None


def test_the_optimizer_has_the_trainers_groups(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    task = task_from_trainer(made)
    model = task.make_model()
    ours = task.make_optimizer(model, learning_rate=0.01)
    theirs = made.create_optimizer()
    assert type(ours) is type(theirs)
    for own, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert own["weight_decay"] == other["weight_decay"]
        assert [p.shape for p in own["params"]] == [p.shape for p in other["params"]]
        assert own["betas"] == other["betas"]
        assert own["lr"] == 0.01


def test_losses_are_weighed_by_their_tokens(tmp_path: Path) -> None:
    """The slow twin: cross-entropy of every token that counts, with one backward pass an example."""
    made = trainer(tmp_path)
    task = task_from_trainer(made)
    model = task.make_model().train()
    examples = [made.train_dataset[i] for i in range(40)]
    batch = {name: torch.stack([each[name] for each in examples]) for name in examples[0]}
    losses, weights = task.losses(model, batch)
    assert weights is not None
    gradients, counts, alone = [], [], []
    for i in range(40):
        inputs = {name: batch[name][i : i + 1] for name in ("input_ids", "attention_mask")}
        logits, labels = model(**inputs).logits[:, :-1], batch["labels"][i : i + 1, 1:]
        total = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", ignore_index=-100)
        counts.append(int((labels != -100).sum()))
        alone.append(float(total.detach()))
        gradient = torch.autograd.grad(total / counts[-1], list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in gradient]).double())
    assert weights.tolist() == counts
    assert float(losses[0]) == pytest.approx(sum(alone) / sum(counts), rel=1e-4)
    found = measure_noise_scale(
        model, task.loss, [made.train_dataset[i] for i in range(40)], collate_fn=task.collate_fn, max_examples=40,
        relative_width=1e-6, infinite_population=True,
    )  # fmt: skip
    c = torch.tensor(counts, dtype=torch.float64)
    g = torch.stack(gradients)
    centre = (c[:, None] * g).sum(dim=0) / c.sum()
    noise = float(((c / c.mean())[:, None] * (g - centre)).square().sum() / 39)
    assert found.noise == pytest.approx(noise, rel=0.001)


class Smoothed(transformers.Trainer):  # type: ignore[misc, name-defined]
    """With a loss of its own, a mean over the batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        outputs = model(**inputs)
        per_example = outputs.logits.square().mean(dim=(1, 2))
        loss = per_example.mean()
        return (loss, outputs) if return_outputs else loss


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def pictures(count: int = 600) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(count, 6, generator=generator)
    return [{"x": x, "labels": (x[0] > 0).long() + (x[1] > 0.5).long()} for x in xs]


def test_a_classifier_is_probed_planned_for_and_trained_by_the_plan(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, model=Classifier(), data=pictures(), lr_scheduler_type="linear", learning_rate=0.03,
        gradient_accumulation_steps=2, save_strategy="steps", save_steps=1, more={"eval_dataset": pictures(100)},
    )  # fmt: skip
    task = task_from_trainer(made)
    assert task.prior == (16, 0.03)
    assert task.learning_rate_schedule == "linear"
    assert len(task.eval_data) == 100
    report = probe(task, examples=8_000)
    assert list(tmp_path.rglob("*")) == [], "a probe writes nothing into the Trainer's folder"
    plan = Forecast.fit(report).plan(LowestLoss(6_000, "examples"), batch_sizes=(1, 64))
    followed = apply_plan(plan, made.args)
    assert followed.per_device_train_batch_size * followed.gradient_accumulation_steps == plan.batch_size
    assert followed.per_device_train_batch_size <= 8
    args = dataclasses.replace(followed, save_strategy="no")
    again = transformers.Trainer(model=Classifier(), args=args, train_dataset=pictures(), eval_dataset=pictures(100))
    again.train()
    assert again.state.global_step == round(plan.schedule.steps)
    assert again.evaluate()["eval_loss"] < 0.6


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd"])
def test_the_arguments_rate_is_the_schedules_step_by_step(shape: Any, tmp_path: Path) -> None:
    rates = LearningRateSchedule.of(shape, examples=400, warmup_examples=80)
    schedule = Schedule.constant(4, examples=400, learning_rate=0.1)
    schedule = Schedule(schedule.segments, 400, learning_rate=0.1, learning_rate_schedule=rates)
    args = apply_plan(schedule, arguments(tmp_path))
    made = transformers.Trainer(model=Classifier(), args=args, train_dataset=pictures())
    made.create_optimizer_and_scheduler(args.max_steps)
    found = []
    for _ in range(args.max_steps):
        found.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        made.lr_scheduler.step()
    # Transformers read the schedule at the beginning of a step, this library in its middle: half a step apart.
    expected = [0.1 * rates(4 * step) for step in range(args.max_steps)]
    assert found == pytest.approx(expected, abs=0.1 / 20)


def test_what_cannot_be_taken_over_says_what_to_do(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(pictures())

    def made(**more: Any) -> Any:
        return trainer(tmp_path, model=Classifier(), data=pictures(8), more=more)

    without = made()
    without.train_dataset = None
    with pytest.raises(TaskError, match="must have a train_dataset, got None"):
        task_from_trainer(without)
    with pytest.raises(TaskError, match=r"iterable train_dataset cannot be read twice .* data=lambda seed"):
        task_from_trainer(trainer(tmp_path, model=Classifier(), data=Stream()))
    with pytest.raises(TaskError, match=r"one eval_dataset is evaluated, got 2: give eval_data=..., one of 'a', 'b'"):
        task_from_trainer(made(eval_dataset={"a": pictures(4), "b": pictures(4)}))
    given = made()
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    with pytest.raises(TaskError, match="optimizer_cls_and_kwargs"):
        task_from_trainer(given)
    sharded = made()
    sharded.args.deepspeed = "ds.json"
    with pytest.raises(TaskError, match="deepspeed must be left out of the arguments"):
        task_from_trainer(sharded)


class Returning(transformers.Trainer):  # type: ignore[misc, name-defined]
    """With a loss that is none, and a loader of its own."""

    returned: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        return self.returned

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=4)


@pytest.mark.parametrize(("returned", "kind"), [(None, "NoneType"), ((torch.ones(()), {}), "tuple")])
def test_a_compute_loss_that_gives_no_loss(returned: Any, kind: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, model=Classifier(), data=pictures(8), kind=Returning)
    made.returned = returned
    with pytest.warns(UserWarning, match="not taken over from the Trainer: get_train_dataloader of Returning"):
        task = task_from_trainer(made)
    with pytest.raises(TaskError, match=f"compute_loss must return the loss alone where .* got a {kind}"):
        TrainingRun(task, learning_rate=0.1, seed=0).step(4)


def test_what_is_no_trainer_and_no_plan(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"trainer must be a transformers\.Trainer, got int"):
        task_from_trainer(3)
    with pytest.raises(TypeError, match=r"schedule must be a batchopt\.Schedule, got str: load it with"):
        apply_plan("plan.json", arguments(tmp_path))  # type: ignore[arg-type]


def test_the_remedies_help(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(pictures())

    opened = task_from_trainer(
        trainer(tmp_path, model=Classifier(), data=Stream()), data=lambda seed: iter(pictures(40)), eval_data=None
    )
    assert opened.population is None
    several = trainer(tmp_path, model=Classifier(), data=pictures(8), more={"eval_dataset": {"a": pictures(4)}})
    assert len(task_from_trainer(several, eval_data=pictures(6)).eval_data) == 6


def test_batches_of_transformers_own_collators_are_taken_apart(tmp_path: Path) -> None:
    from collections import UserDict

    collate = transformers.default_data_collator
    made = trainer(
        tmp_path, model=Classifier(), data=pictures(40), more={"data_collator": lambda each: UserDict(collate(each))}
    )
    task = task_from_trainer(made)
    TrainingRun(task, learning_rate=0.1, seed=0).step(8, micro_batch=4)
    measured = measure_noise_scale(task.make_model(), task.loss, task.data, collate_fn=task.collate_fn, max_examples=40)
    assert measured.examples == 40


def test_examples_without_a_label_that_counts_count_nothing(tmp_path: Path) -> None:
    data = tokens(60)
    for each in data[:6]:
        each["labels"] = torch.full_like(each["labels"], -100)
    task = task_from_trainer(trainer(tmp_path, data=data))
    model = task.make_model()
    assert task.collate_fn is not None
    losses, weights = task.losses(model, task.collate_fn(data[:1]))
    assert weights is not None
    assert weights.tolist() == [0]
    assert bool(losses.isfinite().all())
    noise = {
        which: measure_noise_scale(
            model,
            task.loss,
            rows,
            collate_fn=task.collate_fn,
            max_examples=60,
            relative_width=1e-6,
            infinite_population=True,
        ).signal
        for which, rows in (("all", data), ("without", data[6:]))
    }
    # The mean is the same; of its square noise / n is taken off, which 60 examples know no better than 54.
    assert noise["all"] == pytest.approx(noise["without"], rel=1e-3)


def test_a_model_that_is_made_for_a_trial(tmp_path: Path) -> None:
    made = transformers.Trainer(
        args=arguments(tmp_path), train_dataset=pictures(20), model_init=lambda trial: Classifier()
    )
    assert isinstance(task_from_trainer(made).make_model(), Classifier)


def test_a_loss_of_the_trainers_own_is_taken_where_it_is_a_mean(tmp_path: Path) -> None:
    data = [{name: each[name] for name in ("input_ids", "attention_mask")} for each in tokens(64)]
    task = task_from_trainer(trainer(tmp_path, data=data, kind=Smoothed))
    batch = task.collate_fn([data[0], data[1]])  # type: ignore[misc]
    losses, weights = task.losses(task.make_model(), batch)
    assert weights is None
    assert losses.shape == (2,)


def test_plans_that_arguments_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the plan's changes: train it with a ScheduledTrainer"):
        apply_plan(Schedule((Segment(0, 4), Segment(40, 8)), 400, learning_rate=0.1), arguments(tmp_path))
    with pytest.raises(ValueError, match="must hold a learning rate, got None"):
        apply_plan(Schedule.constant(4, examples=400), arguments(tmp_path))
