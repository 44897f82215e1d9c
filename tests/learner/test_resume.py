"""A learner's checkpoint: exact in the layout that saved it, whole in any other, and copied before it is written."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from learner.learner import Learner
from system.config.schema import LossConfig
from system.data.batching import pack_batch
from system.errors import CheckpointError
from system.records import TrainingSample
from tests.learner.learner_ranks import learner_config, make_samples, run_ranks, start_learner, write_model

Weights = dict[str, np.ndarray]
Layout = tuple[int, int, str]  # ZeRO stage, ranks, precision

pytestmark = pytest.mark.integration


def start(rank: int, num_ranks: int, port: int, layout: Layout, model_path: str) -> Learner:
    config = learner_config(zero_stage=layout[0], num_ranks=num_ranks, dtype=layout[2])
    return start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)


def step(learner: Learner, samples: list[TrainingSample], *, rank: int, num_ranks: int) -> dict[str, float]:
    """The metrics of one update that do not depend on the clock."""
    batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=200)
    metrics = learner.train_step(batch.steps_by_rank[rank]).metrics
    return {each.name: each.value for each in metrics if not each.name.endswith(("seconds", "per_second"))}


def weights_of(learner: Learner) -> Weights:
    return {name: tensor.float().numpy().copy() for name, tensor in learner.gather_full_weights().items()}


def train_and_save(
    rank: int, num_ranks: int, port: int, layout: Layout, model_path: str, samples: list[TrainingSample], folder: str
) -> tuple[Weights, Weights, list[dict[str, float]], list[str]]:
    """Weights after two updates and after four, whose checkpoint is copied after the second, written after the fourth.

    Also the metrics of the last two updates and the files of this rank.
    """
    learner = start(rank, num_ranks, port, layout, model_path)
    for _ in range(2):
        step(learner, samples, rank=rank, num_ranks=num_ranks)
    saved = weights_of(learner)
    write = learner.capture_checkpoint(folder)
    metrics = [step(learner, samples, rank=rank, num_ranks=num_ranks) for _ in range(2)]
    written = write()
    weights = weights_of(learner)
    learner.shutdown()
    return saved, weights, metrics, sorted(map(str, written))


def resume(
    rank: int, num_ranks: int, port: int, layout: Layout, model_path: str, samples: list[TrainingSample], folder: str
) -> tuple[Weights, Weights, list[dict[str, float]]]:
    """Weights as they were loaded, and those after the last two of the four updates, in a new process."""
    learner = start(rank, num_ranks, port, layout, model_path)
    learner.load_checkpoint(folder, policy_version=2)
    assert learner.policy_version == 2
    loaded = weights_of(learner)
    metrics = [step(learner, samples, rank=rank, num_ranks=num_ranks) for _ in range(2)]
    weights = weights_of(learner)
    learner.shutdown()
    return loaded, weights, metrics


class SavedRuns:
    """One run for each layout that is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model_path = write_model(folder / "model", tied=True)
        self.samples = make_samples(self.model_path)
        self._runs: dict[Layout, list[tuple[Weights, Weights, list[dict[str, float]], list[str]]]] = {}

    def checkpoint(self, layout: Layout) -> Path:
        return self.folder / "-".join(map(str, layout))

    def run(self, layout: Layout) -> list[tuple[Weights, Weights, list[dict[str, float]], list[str]]]:
        """What each rank of the run returned."""
        if layout not in self._runs:
            arguments = (layout, self.model_path, self.samples, str(self.checkpoint(layout)))
            self._runs[layout] = run_ranks(train_and_save, *arguments, num_ranks=layout[1])
        return self._runs[layout]

    def resume(self, layout: Layout, *, saved: Layout) -> tuple[Weights, Weights, list[dict[str, float]]]:
        arguments = (layout, self.model_path, self.samples, str(self.checkpoint(saved)))
        first: tuple[Weights, Weights, list[dict[str, float]]] = run_ranks(resume, *arguments, num_ranks=layout[1])[0]
        return first


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SavedRuns:
    return SavedRuns(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "layout",
    [
        (0, 2, "float32"), (1, 2, "float32"), (2, 1, "float32"), (3, 2, "float32"),
        (1, 2, "bfloat16"), (2, 2, "bfloat16"),
    ],
)  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(runs: SavedRuns, layout: Layout) -> None:
    by_rank = runs.run(layout)
    saved, weights, metrics, _ = by_rank[0]
    files = [file for _, _, _, written in by_rank for file in written]
    assert sorted(files) == sorted(str(path) for path in runs.checkpoint(layout).rglob("*") if path.is_file())

    loaded, resumed, resumed_metrics = runs.resume(layout, saved=layout)

    for name in weights:
        np.testing.assert_array_equal(loaded[name], saved[name], err_msg=name)
        np.testing.assert_array_equal(resumed[name], weights[name], err_msg=name)
        assert (saved[name] != weights[name]).any(), f"{name} must change after the copy, or the test shows nothing"
    assert resumed_metrics == metrics


@pytest.mark.parametrize(
    ("saved_in", "layout"),
    [
        ((0, 2, "float32"), (3, 1, "float32")),
        ((3, 2, "float32"), (2, 1, "float32")),
        ((2, 1, "float32"), (0, 2, "float32")),
        ((1, 2, "float32"), (3, 2, "float32")),
        ((1, 2, "bfloat16"), (0, 1, "bfloat16")),
        ((2, 2, "bfloat16"), (3, 2, "bfloat16")),
    ],
)
def test_a_run_goes_on_in_another_layout(runs: SavedRuns, saved_in: Layout, layout: Layout) -> None:
    saved, weights, metrics, _ = runs.run(saved_in)[0]

    loaded, resumed, resumed_metrics = runs.resume(layout, saved=saved_in)

    tolerance = 1e-6 if layout[2] == "float32" else 4e-3  # one unit in the last place of a bfloat16 near 0.5
    for name in weights:
        np.testing.assert_array_equal(loaded[name], saved[name], err_msg=name)
        np.testing.assert_allclose(resumed[name], weights[name], atol=tolerance, rtol=0, err_msg=name)
    for values, expected in zip(resumed_metrics, metrics, strict=True):
        assert values.keys() == expected.keys()
        for name in ("learner/loss", "learner/gradient_norm", "learner/learning_rate"):
            relative = 1e-4 if layout[2] == "float32" else 2e-2
            assert values[name] == pytest.approx(expected[name], rel=relative, abs=1e-6), name


def load_all(rank: int, num_ranks: int, port: int, model_path: str, folders: Sequence[str]) -> list[str]:
    """What loading each folder as version 2 is answered with."""
    learner = start(rank, num_ranks, port, (2, 1, "float32"), model_path)
    return [_error_of(learner, folder) for folder in folders]


def _error_of(learner: Learner, folder: str) -> str:
    try:
        learner.load_checkpoint(folder, policy_version=2)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_checkpoint_that_does_not_fit_is_refused(runs: SavedRuns, tmp_path: Path) -> None:
    layout: Layout = (1, 2, "float32")
    runs.run(layout)
    source = runs.checkpoint(layout)
    state = json.loads((source / "learner.json").read_text())
    first, second = ((source / f"rank_{rank:05d}.safetensors").read_bytes() for rank in range(2))
    whole = {"rank_00000.safetensors": first, "rank_00001.safetensors": second}
    cases: list[tuple[str, object, dict[str, bytes], str]] = [
        ("missing", None, {}, "learner.json is missing"),
        ("broken", [1], {}, "cannot be read"),
        ("older", {**state, "policy_version": 1}, whole, "policy version 1, but the run state says 2"),
        ("other", {**state, "dtype": "bfloat16"}, whole, "saved with learner.dtype=bfloat16"),
        ("half", state, {"rank_00000.safetensors": first}, "rank_00001.safetensors is missing"),
        ("short", {**state, "num_ranks": 1}, {"rank_00000.safetensors": first}, "it is of another model"),
        ("cut", state, {**whole, "rank_00001.safetensors": second[:50]}, "cannot be read as a learner state"),
        ("whole", state, whole, ""),
    ]
    for name, content, files, _ in cases:
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "learner.json").write_text(json.dumps(content))
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
    folders = [str(tmp_path / name) for name, *_ in cases]

    (errors,) = run_ranks(load_all, runs.model_path, folders, num_ranks=1)

    for (name, _, _, message), error in zip(cases, errors, strict=True):
        assert message in error, (name, error)
        assert bool(message) == bool(error), (name, error)
