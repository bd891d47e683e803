"""How a policy acts, and advantages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from batchopt.integrations.actor_critic import advantages_of, log_probabilities_of, sample


def test_a_trace_of_one_gives_the_discounted_rewards() -> None:
    rewards = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])]
    values = [torch.tensor([float(k)]) for k in range(4)]
    on = [torch.ones(1), torch.ones(1), torch.ones(1)]
    found = advantages_of(rewards, values, on, discount=0.5, trace=1.0)
    assert found[0].tolist() == [1 + 1 + 1 + 3 / 8 - 0, 2 + 2 + 3 / 4 - 1, 4 + 3 / 2 - 2]
    ended = [torch.ones(1), torch.zeros(1), torch.ones(1)]
    assert advantages_of(rewards, values, ended, discount=0.5, trace=1.0)[0].tolist()[:2] == [2.0, 1.0]


def test_actions_are_drawn_by_their_probabilities() -> None:
    torch.manual_seed(0)
    policy = torch.tensor([0.2, -0.5, 1.0]).expand(40_000, 3)
    shares = torch.bincount(sample(policy, discrete=True), minlength=3) / 40_000
    expected = policy[0].softmax(dim=0)
    assert bool(((shares - expected).abs() < 4.0 * (expected * (1 - expected) / 40_000).sqrt()).all())
    numbers = sample(torch.tensor([0.5, -2.0, math.log(0.3), math.log(2.0)]).expand(40_000, 4), discrete=False)
    errors = numbers.mean(dim=0) - torch.tensor([0.5, -2.0])
    assert bool((errors.abs() < 4.0 * torch.tensor([0.3, 2.0]) / 200.0).all())
    assert bool((numbers.std(dim=0) / torch.tensor([0.3, 2.0]) - 1.0).abs().max() < 4.0 / math.sqrt(80_000))


@pytest.mark.parametrize("discrete", [True, False])
def test_probabilities_and_entropies_are_torchs(discrete: bool) -> None:
    torch.manual_seed(0)
    policy = torch.randn(2, 5, 6, dtype=torch.float64)
    if discrete:
        twin: Any = torch.distributions.Categorical(logits=policy)
        actions = twin.sample()
    else:
        mean, log_deviation = policy.chunk(2, dim=-1)
        twin = torch.distributions.Independent(torch.distributions.Normal(mean, log_deviation.exp()), 1)
        actions = twin.sample()
    logs, entropy = log_probabilities_of(policy, actions)
    torch.testing.assert_close(logs, twin.log_prob(actions), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropy, twin.entropy(), rtol=1e-10, atol=1e-12)
