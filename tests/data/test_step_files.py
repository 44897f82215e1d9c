"""A recorded step comes back bit for bit, and a bit that changed on the disk is found."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from system.algorithms.barl.records import AnswerHypotheses, BeliefTrace
from system.config.load import config_from_dict, to_dict
from system.data.record_columns import from_columns, require_storable, to_columns
from system.data.step_files import StepFile, add_result, seal, write_step
from system.errors import RecordError
from system.records import FloatArray, Metric, StepResult
from tests.data.recorded_steps import make_step, with_term
from tests.runtime.controller_fakes import make_config

CONFIG = make_config()


def leaves(value: object) -> Iterator[object]:
    """Plain values in their order, arrays as type, shape and bytes."""
    if is_dataclass(value):
        for entry in fields(value):
            yield from leaves(getattr(value, entry.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, np.ndarray):
        yield (value.dtype.str, value.shape, value.tobytes())
    else:
        yield repr(value)


def trace(*, stated: int) -> BeliefTrace:
    table = np.array([[-np.inf, -0.1], [np.nan, 1e-30], [-0.25, -3.0]], np.float32)
    return BeliefTrace(
        hypotheses=AnswerHypotheses(answers=("2", "drei\ud800"), stated=np.array([0, -1], np.int32), seconds=0.5),
        stated=stated,
        step_ends=np.array([1, 70_000], np.int32),
        answer_logprobs=table,
        policy_version=3,
        trees_seconds=0.125,
        forward_seconds=float("nan"),
    )


def test_a_step_comes_back_bit_for_bit(tmp_path: Path) -> None:
    step = with_term(
        make_step(CONFIG, policy_version=2),
        replace(make_step(CONFIG).groups[0].terms[0][0], value=float("inf"), status="invalid", reason="timeout"),
        group=1,
        completion=0,
    )
    step.groups[0].group.trajectories[0].logprobs[2:4] = [np.nan, -np.inf]
    path = tmp_path / "update_000003.npz"
    write_step(path, step, config=to_dict(CONFIG), evidence=None)
    assert StepFile(path).result() is None
    result = StepResult(policy_version=3, has_new_weights=True, metrics=(Metric(name="learner/loss", value=0.1),))
    add_result(path, result)

    file = StepFile(path)
    assert list(leaves(file.step(evidence=None))) == list(leaves(step))
    assert file.result() == result
    assert config_from_dict(file.config) == CONFIG
    with np.load(path) as arrays:  # nothing of ours is needed to look into it
        assert arrays["PackedMicroBatch.token_ids"].sum() == sum(
            micro_batch.token_ids.sum() for rank in step.batch.steps_by_rank for micro_batch in rank[0].micro_batches
        )


def test_evidence_comes_back_bit_for_bit_and_is_left_out_where_its_type_is_unknown(tmp_path: Path) -> None:
    step = make_step(CONFIG)
    asked = replace(step.groups[0], evidence=(trace(stated=0), trace(stated=-1)))
    step = replace(step, groups=(asked, *step.groups[1:]))
    path = tmp_path / "update_000001.npz"

    write_step(path, step, config=to_dict(CONFIG), evidence=BeliefTrace)
    assert list(leaves(StepFile(path).step(evidence=BeliefTrace))) == list(leaves(step))
    write_step(path, step, config=to_dict(CONFIG), evidence=None)
    assert StepFile(path).step(evidence=None).groups[0].evidence is None


def test_a_changed_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "update_000001.npz"
    write_step(path, make_step(CONFIG), config=to_dict(CONFIG), evidence=None)
    whole = path.read_bytes()
    positions = [0, len(whole) - 1, *np.random.default_rng(0).integers(0, len(whole), 200).tolist()]
    for position in positions:
        content = bytearray(whole)
        content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
        with pytest.raises(RecordError, match="has other content than was written"):
            StepFile(path)
    for length in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match="damaged or cut off"):
            StepFile(path)


def test_an_array_of_python_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "update_000001.npz"
    write_step(path, make_step(CONFIG), config=to_dict(CONFIG), evidence=None)
    with zipfile.ZipFile(path, "a") as archive:
        with archive.open("Evil.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}], dtype=object), allow_pickle=True)
        archive.comment = b"0" * 64
    seal(path)
    with pytest.raises(RecordError, match="Object arrays cannot be loaded"):
        StepFile(path).step(evidence=None)


@dataclass(frozen=True)
class Inner:
    values: FloatArray


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...]
    limit: float | None
    pair: tuple[int, str]


def test_arrays_of_a_field_lie_in_one_column() -> None:
    outer = Outer(
        name="x", parts=(Inner(np.zeros((2, 3), np.float32)), Inner(np.ones(0, np.float32))), limit=None, pair=(1, "y")
    )
    tree, columns = to_columns(outer, Outer, opaque=None)
    assert tree == {"name": "x", "parts": [{"values": [2, 3]}, {"values": [0]}], "limit": None, "pair": [1, "y"]}
    assert [(name, array.shape) for name, array in columns.arrays.items()] == [("Inner.values", (6,))]
    assert list(leaves(from_columns(tree, Outer, columns=columns, opaque=None))) == list(leaves(outer))
    too_long: Any = {**tree, "parts": [{"values": [2, 4]}]}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="too short"):
        from_columns(too_long, Outer, columns=columns, opaque=None)
    too_short: Any = {**tree, "parts": []}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="nothing takes the end"):
        from_columns(too_short, Outer, columns=columns, opaque=None)


def test_a_type_without_a_place_is_refused_before_anything_is_written() -> None:
    @dataclass
    class Strange:
        callback: type[int]

    require_storable(BeliefTrace)
    with pytest.raises(TypeError, match=r"Strange\.callback"):
        require_storable(Strange)


def test_the_record_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "update_000001.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("record.json", json.dumps({"format": 99}))
        archive.comment = b"0" * 64
    seal(path)
    with pytest.raises(RecordError, match=r"has the format 99, but this version of credence reads 1"):
        StepFile(path)
    write_step(path, make_step(CONFIG), config=to_dict(CONFIG), evidence=BeliefTrace)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("result.json", json.dumps({"policy_version": 1}))
        archive.comment = b"0" * 64
    seal(path)
    with pytest.raises(RecordError, match="does not fit the records of this version of credence"):
        StepFile(path).result()
