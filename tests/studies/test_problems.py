"""The studies are tasks that the commands take."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from studies.made_data import images, save_all, save_images

from batchopt.cli.task_file import load_task
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

STUDIES = Path(__file__).parents[2] / "studies"


def test_digits() -> None:
    task = load_task(f"{STUDIES / 'digits' / 'problem.py'}:task")
    assert task.population == 1_797
    run = TrainingRun(task, learning_rate=0.3, seed=0)
    first = run.evaluate()
    for _ in range(150):
        run.step(32)
    assert first == pytest.approx(2.3, abs=0.1)
    assert run.evaluate() < 0.5


def test_mnist_reads_the_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "mnist.npz",
        x_train=generator.integers(0, 256, (2_000, 28, 28), dtype=np.uint8),
        y_train=generator.integers(0, 10, 2_000, dtype=np.uint8),
    )
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    task = load_task(f"{STUDIES / 'mnist' / 'problem.py'}:task")
    assert task.population == 2_000
    run = TrainingRun(task, learning_rate=0.01, seed=0)
    run.step(16)
    assert run.evaluate() == pytest.approx(2.3, abs=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    save_all(made)
    return made


@pytest.mark.parametrize(
    ("study", "name"),
    [
        ("cifar10", "task"),
        ("imagenet", "task"),
        ("imagenet", "batchnorm"),
        ("svhn", "task"),
        ("svhn", "vae"),
        ("svhn", "classifier"),
        ("language", "task"),
        ("language", "tied"),
        ("language", "transformer"),
    ],
)
@pytest.mark.filterwarnings("ignore:SVHN is not in:RuntimeWarning")
def test_a_study_trains_on_what_the_folder_holds(
    study: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHOPT_DATA", str(folder))
    task = load_task(f"{STUDIES / study / 'problem.py'}:{name}")
    run = TrainingRun(task, learning_rate=0.003, seed=0)
    first = run.evaluate()
    for _ in range(120):  # running means of BatchNorm take some to follow
        run.step(16)
    assert run.evaluate() < first


def test_svhn_is_read_in_the_forms_that_it_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    spec = f"{STUDIES / 'svhn' / 'problem.py'}:classifier"
    with pytest.raises(TaskError, match=r"a folder with svhn.npz, or train_32x32.mat and test_32x32.mat of .* got"):
        load_task(spec)
    save_images(tmp_path / "mnist.npz", (28, 28), train=20, test=10)
    with pytest.warns(RuntimeWarning, match="SVHN is not in .*: the study runs on MNIST in its place"):
        assert load_task(spec).population == 20
    (x, y), (x_test, y_test) = images(30, (32, 32, 3), 0), images(10, (32, 32, 3), 1)
    for name, pictures, labels in (("train", x, y), ("test", x_test, y_test)):
        # As on the site: the example is the last dimension, and the digit 0 has the label 10.
        stored = np.where(labels == 0, 10, labels)[:, None]
        scipy_io.savemat(tmp_path / f"{name}_32x32.mat", {"X": pictures.transpose(1, 2, 3, 0), "y": stored})
    task = load_task(spec)
    assert task.population == 30
    np.testing.assert_allclose(task.data[0].numpy(), x.transpose(0, 3, 1, 2) / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(task.data[1].numpy(), y)
    np.testing.assert_array_equal(task.eval_data[1].numpy(), y_test)
    save_images(tmp_path / "svhn.npz", (32, 32, 3), train=40, test=10)
    assert load_task(spec).population == 40


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("cifar10", "a folder with cifar10-subset.npz, got .*: unset the variable to download CIFAR-10"),
        ("mnist", "a folder with mnist.npz, got .*: unset the variable to download MNIST"),
        ("imagenet", "BATCHOPT_IMAGENET must name a folder with train/CLASS"),
        ("language", "BATCHOPT_TEXT must name a text file, or BATCHOPT_DATA a folder with imdb-text.txt"),
    ],
)
def test_missing_data_say_where_to_get_them(
    study: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    monkeypatch.delenv("BATCHOPT_IMAGENET", raising=False)
    monkeypatch.delenv("BATCHOPT_TEXT", raising=False)
    with pytest.raises(TaskError, match=message):
        load_task(f"{STUDIES / study / 'problem.py'}:task")


def test_atari_plays_and_learns_from_signs_of_rewards() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("gymnasium")
    task = load_task(f"{STUDIES / 'atari' / 'problem.py'}:Breakout")
    run = TrainingRun(task, learning_rate=7e-4, seed=0)
    environments = task.data.environments(3)
    environments._age = 1  # as new: a random age takes seconds
    batch, _ = environments.collect(run.model, 2)
    assert tuple(batch["observations"].shape) == (2, 5, 4, 84, 84)
    assert batch["observations"].float().std() > 10.0
    losses = task.loss(run.model, batch)
    assert losses.shape == (2,)
    assert bool(losses.isfinite().all())
    with pytest.raises(TaskError, match="has no name 'nothing'"):
        load_task(f"{STUDIES / 'atari' / 'problem.py'}:nothing")


def test_all_pendulums_at_once_swing_as_gymnasiums_does() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    together = runpy.run_path(str(STUDIES / "ppo" / "vector_pendulum.py"))["VectorPendulum"](3)
    together.reset(seed=1)
    alone = [gymnasium.make("Pendulum-v1") for _ in range(3)]
    for k, one in enumerate(alone):
        one.reset(seed=0)
        one.unwrapped.state = np.array([together._angle[k], together._speed[k]])
    generator = np.random.default_rng(0)
    for count in range(1, 201):
        actions = generator.normal(0.0, 2.0, (3, 1)).astype(np.float32)
        seen, rewards, terminated, truncated, _ = together.step(actions)
        for k, one in enumerate(alone):
            expected, reward, *_ = one.step(actions[k])
            # Gymnasium keeps torques in float32, and a pendulum near the top makes a difference of 1e-7 grow.
            np.testing.assert_allclose(seen[k], expected, atol=1e-4)
            assert rewards[k] == pytest.approx(reward, abs=1e-4)
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (count == 200)
    again, rewards, _, truncated, _ = together.step(actions)
    assert not rewards.any()
    assert not truncated.any()
    assert np.abs(again[:, 2]).max() <= 1.0, "the next episode has begun"


def test_pendulum_learns_in_batches_of_whole_episodes() -> None:
    pytest.importorskip("gymnasium")
    task = load_task(f"{STUDIES / 'ppo' / 'problem.py'}:pendulum")
    run = TrainingRun(task, learning_rate=6e-2, seed=0)
    first = run.evaluate()
    for _ in range(40):
        run.step(32)
    assert run.evaluate() < 0.6 * first


def test_the_lander_learns_in_episodes_that_end() -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("Box2D")
    task = load_task(f"{STUDIES / 'ppo' / 'problem.py'}:lander")
    run = TrainingRun(task, learning_rate=1e-2, seed=0)
    assert task.data.environments(1).collect(run.model, 3).batch["counts"].shape[1] <= 400
    first = task.data.score_of(run.evaluate())
    for _ in range(25):
        run.step(16)
    assert task.data.score_of(run.evaluate()) > first + 60.0


def test_atari_games_without_sticky_actions_begin_alike_for_any_seed() -> None:
    pytest.importorskip("ale_py")
    make = runpy.run_path(str(STUDIES / "atari" / "problem.py"))["make"]
    played, fresh = make("Breakout"), make("Breakout")
    played.reset(seed=1)
    for _ in range(30):
        played.step(1)
    played.close()
    assert make("Breakout") is played, "a game that was closed is opened again"
    seen = [environment.reset(seed=seed)[0] for environment, seed in ((played, 2), (fresh, 3))]
    for action in (1, 2, 3, 2, 0, 3):
        np.testing.assert_array_equal(*seen)
        seen = [environment.step(action)[0] for environment in (played, fresh)]
