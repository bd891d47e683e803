"""Environments with Gymnasium's interface as data of a task: what is collected, the losses, and going on."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integrations.walks import ActorCritic, MultiBinary, Walk, model_of
from torch import Tensor, nn

from batchopt import Rollouts, TrainingTask, per_example_squared_norms
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.integrations.actor_critic import log_probabilities_of
from batchopt.integrations.gymnasium import GymnasiumEnvironments, GymnasiumEpisodes, actor_critic_loss, ppo_loss
from batchopt.probing.measure import measure_run
from batchopt.probing.rollouts import collect
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot

DISCOUNT, TRACE = 0.9, 0.8


def environments(seed: int = 0, make: Any = Walk, **changes: Any) -> GymnasiumEnvironments:
    settings = {"steps": 20, "age": 1, "discount": DISCOUNT, "trace": TRACE} | changes
    return GymnasiumEnvironments(make, seed=seed, **settings)


def collected(count: int = 6, **changes: Any) -> tuple[ActorCritic, dict[str, Tensor], list[float]]:
    model = model_of()
    torch.manual_seed(2)
    with torch.no_grad():
        batch, scores = environments(**changes).collect(model, count)
    return model, batch, list(scores)


def test_shapes_and_scores() -> None:
    model, batch, scores = collected()
    assert {name: tuple(part.shape) for name, part in batch.items()} == {
        "observations": (6, 20, 3),
        "actions": (6, 20),
        "log_probabilities": (6, 20),
        "advantages": (6, 20),
        "returns": (6, 20),
    }
    assert set(batch["actions"].unique().tolist()) == {0, 1}
    assert len(scores) >= 6, "no episode is longer than 12 steps"
    policy, _ = model(batch["observations"].flatten(0, 1))
    chosen = torch.distributions.Categorical(logits=policy).log_prob(batch["actions"].flatten())
    torch.testing.assert_close(batch["log_probabilities"].flatten(), chosen)


def begun(environment: Walk, copy: int, episode: int) -> np.ndarray:
    seed = np.random.SeedSequence((0, copy, episode)).generate_state(1)[0]
    return environment.reset(seed=int(seed))[0]


def test_what_was_collected_is_what_the_environments_did() -> None:
    """The slow twin: every copy played again alone, its advantages as a sum over all later surprises."""
    model, batch, scores = collected()
    told = []
    for k in range(6):
        rewards, values, ends, later = [], [], [], []
        environment, episode, score = Walk(), 0, 0.0
        observation = begun(environment, k, episode)
        for t in range(20):
            np.testing.assert_array_equal(batch["observations"][k, t].numpy(), observation)
            values.append(float(model(torch.from_numpy(observation)[None])[1].detach()))
            observation, reward, ended, cut, _ = environment.step(int(batch["actions"][k, t]) + 3)
            score += reward
            expected = 0.0 if ended else float(model(torch.from_numpy(observation)[None])[1].detach())
            rewards.append(reward)
            later.append(expected)
            ends.append(ended or cut)
            if ends[-1]:
                told.append(score)
                episode, score = episode + 1, 0.0
                observation = begun(environment, k, episode)
        surprises = [r + DISCOUNT * v - value for r, v, value in zip(rewards, later, values, strict=True)]
        for t in range(20):
            advantage = weight = 0.0
            for i in range(t, 20):
                weight = 1.0 if i == t else weight * DISCOUNT * TRACE * (not ends[i - 1])
                advantage += weight * surprises[i]
            assert float(batch["advantages"][k, t]) == pytest.approx(advantage, rel=1e-4, abs=1e-5)
            assert float(batch["returns"][k, t]) == pytest.approx(advantage + values[t], rel=1e-4, abs=1e-5)
    assert sorted(scores) == pytest.approx(sorted(told), rel=1e-6)


def test_ppo_at_the_policy_that_acted_has_the_gradient_of_the_policy() -> None:
    model, batch, _ = collected()
    parameters = list(model.parameters())
    weights = {"value_weight": 0.3, "entropy_weight": 0.02}
    ppo = torch.autograd.grad(ppo_loss(model, batch, **weights).sum(), parameters)
    a2c = torch.autograd.grad(actor_critic_loss(model, batch, **weights).sum(), parameters)
    for one, other in zip(ppo, a2c, strict=True):
        torch.testing.assert_close(one, other)


def test_ppo_counts_no_change_beyond_the_clip() -> None:
    model, batch, _ = collected()
    for sign, change in ((1.0, 0.5), (-1.0, -0.5)):
        far = {
            **batch,
            "advantages": sign * batch["advantages"].abs(),
            "log_probabilities": batch["log_probabilities"] - change,
        }
        loss = ppo_loss(model, far, value_weight=0.0)
        assert torch.autograd.grad(loss.sum(), list(model.policy.parameters()), allow_unused=True)[0].abs().max() == 0
        expected = -(1.0 + 0.2 * sign) * far["advantages"].mean(dim=1)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", [actor_critic_loss, ppo_loss])
def test_gradients_of_examples_are_taken_in_one_pass(loss: Any) -> None:
    model, batch, _ = collected()
    norms = per_example_squared_norms(model, loss, batch)
    for k in range(6):
        alone = loss(model, {name: part[k : k + 1] for name, part in batch.items()})
        gradients = torch.autograd.grad(alone.sum(), list(model.parameters()))
        squares = sum(float(gradient.double().square().sum()) for gradient in gradients)
        assert float(norms[k]) == pytest.approx(squares, rel=5e-5)


def task_of(make: Any = Walk, width: int = 2, **changes: Any) -> TrainingTask:
    return TrainingTask(
        model=lambda: ActorCritic(width),
        data=Rollouts(
            environments=lambda seed: environments(seed, make, **changes), best_score=1_000.0, episodes=3, passes=1
        ),
        loss=actor_critic_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
        device="cpu",
    )


@pytest.mark.parametrize("discrete", [True, False])
def test_a_run_goes_on_from_a_snapshot_bit_for_bit(discrete: bool, tmp_path: Path) -> None:
    task = task_of(lambda: Walk(discrete=discrete), width=2 if discrete else 4, steps=5, age=9)
    whole = TrainingRun(task, learning_rate=0.01, seed=1)
    for count in (4, 6, 3):
        whole.step(count)
    save_snapshot(whole, tmp_path / "state")
    last = [whole.step(count) for count in (6, 8)]
    again = TrainingRun(task, learning_rate=0.01, seed=1)
    load_snapshot(again, tmp_path / "state")
    assert [again.step(count) for count in (6, 8)] == last
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_copies_differ_and_so_do_their_ages() -> None:
    _, batch, _ = collected(count=12, age=10)
    assert len({tuple(row) for row in batch["observations"][:, 0].tolist()}) == 12
    fresh = [begun(Walk(), k, 0).tolist() for k in range(12)]
    begins = [row.tolist() in fresh for row in batch["observations"][:, 0]]
    assert sum(begins) < 6
    assert all(row.tolist() in fresh for row in collected(count=12)[1]["observations"][:, 0])


def test_a_copy_is_closed_once_when_it_was_played_or_is_no_longer_used() -> None:
    closed: list[Walk] = []

    class Counted(Walk):
        def close(self) -> None:
            closed.append(self)

    found = environments(make=Counted)
    with torch.no_grad():
        found.play(model_of(), 3)
        assert len(closed) == 3
        found.collect(model_of(), 5)
        assert len(closed) == 3
        found.load_state_dict(found.state_dict())
    assert len(closed) == 8
    del found
    gc.collect()
    assert len(closed) == len(set(closed)) == 13


def test_the_noise_scale_is_measured_by_examples() -> None:
    run = TrainingRun(task_of(steps=5), learning_rate=0.01, seed=1)
    found = measure_run(run, max_examples=200)
    assert (found.examples, found.group_size, found.population) == (200, 1, None)
    assert found.method == "per-example gradients, all examples in one pass"


class Walks:
    """Walks side by side; an episode begins anew in the step after its end."""

    def __init__(self, count: int, make: Any = Walk, mode: str = "NextStep") -> None:
        self.walks = [make() for _ in range(count)]
        self.single_action_space = self.walks[0].action_space
        self.metadata = {"autoreset_mode": SimpleNamespace(value=mode)}
        self.over = [False] * count

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        return np.stack([walk.reset(seed=seed + k)[0] for k, walk in enumerate(self.walks)]), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        found = [
            (walk.reset(seed=0)[0], 0.0, False, False, {}) if over else walk.step(action)
            for walk, over, action in zip(self.walks, self.over, actions, strict=True)
        ]
        self.over = [ends or cut for _, _, ends, cut, _ in found]
        return *(np.array([each[k] for each in found]) for k in range(4)), {}

    def close(self) -> None:
        """Nothing."""


def episodes(make: Any = Walks, **changes: Any) -> GymnasiumEpisodes:
    return GymnasiumEpisodes(make, seed=7, **{"discount": DISCOUNT, "trace": TRACE} | changes)


def test_whole_episodes_are_what_every_copy_did_up_to_its_end() -> None:
    model = model_of()
    torch.manual_seed(2)
    with torch.no_grad():
        batch, scores = episodes().collect(model, 8)
    lengths = batch["counts"].sum(dim=1).int().tolist()
    assert max(lengths) == batch["counts"].shape[1] == 12
    assert min(lengths) < 12
    for k, length in enumerate(lengths):
        walk = Walk()
        observation, _ = walk.reset(seed=7 + k)
        surprises, values, score = [], [], 0.0
        for t in range(length):
            np.testing.assert_array_equal(batch["observations"][k, t].numpy(), observation)
            values.append(float(model(torch.from_numpy(observation)[None])[1].detach()))
            observation, reward, ended, cut, _ = walk.step(int(batch["actions"][k, t]) + 3)
            expected = 0.0 if ended else float(model(torch.from_numpy(observation)[None])[1].detach())
            surprises.append(reward + DISCOUNT * expected - values[-1])
            score += reward
            assert (ended or cut) == (t == length - 1)
        assert scores[k] == pytest.approx(score, rel=1e-6)
        for t in range(length):
            advantage = sum((DISCOUNT * TRACE) ** (i - t) * surprises[i] for i in range(t, length))
            assert float(batch["advantages"][k, t]) == pytest.approx(advantage, rel=1e-4, abs=1e-5)
            assert float(batch["returns"][k, t]) == pytest.approx(advantage + values[t], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", [actor_critic_loss, ppo_loss])
def test_steps_after_an_episode_do_not_count(loss: Any) -> None:
    model = model_of()
    torch.manual_seed(2)
    with torch.no_grad():
        batch = dict(episodes().collect(model, 8).batch)
    losses, weights = loss(model, batch)
    assert weights.tolist() == batch["counts"].sum(dim=1).tolist()
    for k in range(8):
        length = int(weights[k])
        alone = {name: part[k : k + 1, :length] for name, part in batch.items() if name != "counts"}
        torch.testing.assert_close(loss(model, alone), losses[k : k + 1])
    batch["observations"] = torch.where(batch["counts"][:, :, None] > 0, batch["observations"], 5.0)
    torch.testing.assert_close(loss(model, batch)[0], losses)


def test_episodes_that_do_not_end_and_other_ways_to_begin_anew_are_refused() -> None:
    with pytest.raises(TaskError, match="one went on for 50 steps: give the environment a time limit"):
        episodes(lambda count: Walks(count, Endless), longest=50).play(model_of(), 3)
    with pytest.raises(TaskError, match=r"one step after they end \(AutoresetMode.NEXT_STEP\), got SameStep"):
        episodes(lambda count: Walks(count, mode="SameStep")).play(model_of(), 3)
    with pytest.raises(NonFiniteLossError, match="a reward is NaN or infinite"):
        episodes(lambda count: Walks(count, NaNReward)).collect(model_of(), 3)
    assert len(episodes(lambda count: Walks(count, AtOnce)).play(model_of(), 3)) == 3


class Endless(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, _, _, more = super().step(action)
        self.at = np.zeros(3, np.float32)
        return observation, reward, False, False, more


class AtOnce(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, _, _, more = super().step(action)
        return observation, reward, True, False, more


class NaNReward(Walk):
    def step(self, action: Any) -> Any:
        observation, _, ends, cut, more = super().step(action)
        return observation, math.nan, ends, cut, more


class NaNObservation(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, ends, cut, more = super().step(action)
        return observation * math.nan, reward, ends, cut, more


def test_an_environment_that_never_ends_says_what_to_do() -> None:
    with pytest.raises(TaskError, match=r"one went on for 50 steps: wrap the environment in gymnasium.wrappers.TimeL"):
        environments(make=Endless, longest=50).play(model_of(), 2)
    _, batch, scores = collected(make=Endless)
    assert scores == []
    assert bool(batch["advantages"].isfinite().all())


def test_an_environment_that_ends_at_once_has_an_episode_a_step() -> None:
    model, batch, scores = collected(make=AtOnce)
    assert len(scores) == 120
    # An advantage is then the reward and what was expected instead; the action itself decides nothing more.
    _, values = model(batch["observations"].flatten(0, 1))
    torch.testing.assert_close(batch["returns"].flatten() - values.detach(), batch["advantages"].flatten())
    assert len(environments(make=AtOnce).play(model, 70)) == 70


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NaNReward, "a reward is nan, after 1 steps of an episode: look at its environment"),
        (NaNObservation, "the policy became NaN or infinite: lower the learning rate, or look for what is not finite"),
    ],
)
def test_what_is_not_finite_is_found(make: Any, message: str) -> None:
    with pytest.raises(NonFiniteLossError, match=message):
        collected(make=make)


def test_a_model_of_another_kind_says_what_it_must_give() -> None:
    with pytest.raises(TaskError, match=r"\(policy, values\) for 2 observations, of shapes .* got \(2, 2\)"):
        environments().collect(nn.Linear(3, 2), 2)

    class Distributed(ActorCritic):
        def forward(self, observations: Tensor) -> Any:
            policy, values = super().forward(observations)
            return torch.distributions.Categorical(logits=policy), values

    with pytest.raises(TaskError, match=r"of shapes .* got Categorical and \(2,\)"):
        environments().collect(Distributed(), 2)


def test_actions_of_another_kind_are_refused() -> None:
    class Buttons(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = MultiBinary()

    with pytest.raises(TaskError, match="actions must be of a Discrete space or of a Box of one dimension, got"):
        environments(make=Buttons).collect(model_of(), 2)


def test_observations_come_in_the_models_precision() -> None:
    class Double(Walk):
        def reset(self, *, seed: int) -> Any:
            return super().reset(seed=seed)[0].astype(np.float64), {}

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation.astype(np.float64), *rest

    _, batch, _ = collected(make=Double)
    assert batch["observations"].dtype == torch.float32


def test_the_policy_acts_in_the_precision_in_which_it_is_trained() -> None:
    task = replace(task_of(), autocast=torch.bfloat16)
    run = TrainingRun(task, learning_rate=0.01, seed=0)
    environment = environments(3)
    batch = collect(environment, run.model, 6, torch.device("cpu"), torch.bfloat16).batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        policy, _ = run.model(batch["observations"].flatten(0, 1))
    logs, _ = log_probabilities_of(policy.float(), batch["actions"].flatten())
    torch.testing.assert_close(logs, batch["log_probabilities"].flatten(), rtol=0, atol=1e-6)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        environments(steps=0)
    with pytest.raises(ValueError, match=r"discount must be from 0 to 1, got 1.5"):
        environments(discount=1.5)


def test_gymnasiums_own_environments_learn() -> None:
    gymnasium = pytest.importorskip("gymnasium")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.value = (
                nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, width)) for width in (2, 1)
            )

        def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
            return self.policy(observations), self.value(observations)[:, 0]

    task = TrainingTask(
        model=Network,
        data=Rollouts(
            environments=lambda seed: GymnasiumEnvironments(
                lambda: gymnasium.make("CartPole-v1"), seed=seed, steps=16, age=20
            ),
            best_score=505.0,
        ),
        loss=actor_critic_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
        device="cpu",
    )
    run = TrainingRun(task, learning_rate=0.01, seed=0)
    first = run.evaluate()
    for _ in range(80):
        run.step(16)
    # A first policy keeps the pole up for about 20 of 500 steps.
    assert task.data.score_of(first) < 40.0
    assert task.data.score_of(run.evaluate()) > 60.0
