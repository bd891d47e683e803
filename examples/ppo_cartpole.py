"""PPO on Gymnasium's CartPole: an example is 32 steps of one copy of the environment."""

import gymnasium
from torch import nn, optim


def cartpole():
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.value = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, observations):
        return self.policy(observations), self.value(observations)[:, 0]


# The end of your own code.
import batchopt
from batchopt.integrations.gymnasium import GymnasiumEnvironments, ppo_loss

rollouts = batchopt.Rollouts(
    environments=lambda seed: GymnasiumEnvironments(cartpole, seed=seed, steps=32, age=100),
    best_score=505.0, passes=4, episodes=16,
)  # fmt: skip
task = batchopt.TrainingTask(model=ActorCritic, data=rollouts, loss=ppo_loss, optimizer=optim.Adam, prior=(16, 3e-3))
report = batchopt.probe(task, examples=4_000)
forecast = batchopt.Forecast.fit(report)
plan = forecast.plan(batchopt.LowestLoss(2_000, "examples"))
print(plan)
result = batchopt.train(task, plan.schedule)
model = result.model
batchopt.write_report("out/report.html", report=report, forecast=forecast, plan=plan, measured=result.curve)
loss = result.curve.losses[-1]
print(f"ended at a score of {rollouts.score_of(loss):.3g}, a loss of {loss:.3g}, predicted {plan.loss}")
print("see out/report.html")
