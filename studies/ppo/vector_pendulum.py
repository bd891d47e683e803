"""Gymnasium's Pendulum-v1 with all copies in one array, so that a million steps take a second."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

LONGEST = 200
"""Steps of an episode; all copies end together."""
SPEED, TORQUE, TIME_STEP = 8.0, 2.0, 0.05


class VectorPendulum(VectorEnv):
    """So many pendulums of mass and length 1, under a gravity of 10.

    Args:
        count: of copies.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, count: int) -> None:
        self.num_envs = count
        one = gymnasium.make("Pendulum-v1", disable_env_checker=True)
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        self._generator = np.random.default_rng()
        self._begin()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin all episodes anew."""
        del options
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._begin()
        return self._seen(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Turn every pendulum by its torque, (count, 1); after the end of an episode the next begins instead."""
        never = np.zeros(self.num_envs, dtype=bool)
        if self._steps == LONGEST:
            self._begin()
            return self._seen(), np.zeros(self.num_envs), never, never, {}
        torque = np.clip(np.asarray(actions, np.float64)[:, 0], -TORQUE, TORQUE)
        angle = (self._angle + math.pi) % (2.0 * math.pi) - math.pi
        costs = angle**2 + 0.1 * self._speed**2 + 0.001 * torque**2
        faster = self._speed + (15.0 * np.sin(self._angle) + 3.0 * torque) * TIME_STEP
        self._speed = np.clip(faster, -SPEED, SPEED)
        self._angle = self._angle + self._speed * TIME_STEP
        self._steps += 1
        return self._seen(), -costs, never, np.full(self.num_envs, self._steps == LONGEST), {}

    def _begin(self) -> None:
        self._angle = self._generator.uniform(-math.pi, math.pi, self.num_envs)
        self._speed = self._generator.uniform(-1.0, 1.0, self.num_envs)
        self._steps = 0

    def _seen(self) -> np.ndarray:
        return np.stack([np.cos(self._angle), np.sin(self._angle), self._speed], axis=1).astype(np.float32)
