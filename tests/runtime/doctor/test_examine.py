"""The order of questions and what becomes of answers that do not come; and this machine as it is."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from system.runtime.doctor import node_probe
from system.runtime.doctor.examine import examine
from system.runtime.doctor.facts import Link
from system.runtime.doctor.node_probe import NodeProbe, parse_compute_apps, process_limit
from system.runtime.doctor.nodes import Answer, Question, ThisMachine


class FakeNodes:
    """Three nodes on this machine; `answers` replaces those of (address, method)."""

    def __init__(self, answers: dict[tuple[str, str], Answer], *, addresses: Sequence[str] = ("a", "b", "c")) -> None:
        self.where = "a fake cluster"
        self.object_store_bytes: dict[str, int | None] = dict.fromkeys(addresses, 10**9)
        self.answers = answers
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question], *, seconds: float) -> list[Answer]:
        self.asked += questions
        return [self.answers.get((each.address, each.method)) or self._default(each) for each in questions]

    def _default(self, question: Question) -> Answer:
        facts = {
            "python": "3.11.7", "packages": {}, "shared_memory_bytes": 1, "shared_memory_free_bytes": 1,
            "max_open_files": -1, "max_processes": -1, "num_processes": 1, "disk_free_bytes": 1,
            "gpu_processes": [{"pid": 7, "used_mib": 5, "gpu": "G", "is_running": True, "title": "x", "parent": 1}],
            "is_container": False,
        }  # fmt: skip
        values: dict[str, Any] = {
            "facts": facts, "clock": 1000.5, "listen": 4000, "free_port": 5000, "all_reduce": None, "sees": True,
        }  # fmt: skip
        if question.method == "reach":
            return Answer(value=[None] * len(question.arguments[0]))
        return Answer(value=values[question.method])


def test_every_pair_is_connected_and_every_node_has_a_rank(tmp_path: Path) -> None:
    nodes = FakeNodes({})
    found = examine(nodes, folder=tmp_path, wall_clock=lambda: 1000.0)
    assert [node.address for node in found.nodes] == ["a", "b", "c"]
    assert found.nodes[0].gpu_processes[0].pid == 7  # type: ignore[union-attr]
    assert {(link.source, link.target) for link in found.links} == {
        ("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"),
    }  # fmt: skip
    assert [clock.ahead_seconds for clock in found.clocks] == [0.5, 0.5, 0.5]
    ranks = [each for each in nodes.asked if each.method == "all_reduce"]
    assert [(each.address, each.arguments[1:5]) for each in ranks] == [
        ("a", (0, 3, "a", 5000)), ("b", (1, 3, "a", 5000)), ("c", (2, 3, "a", 5000)),
    ]  # fmt: skip
    assert found.shared_folder is not None
    assert found.shared_folder.blind == ()
    assert list(tmp_path.iterdir()) == []  # the probe is gone


def test_what_does_not_come_is_written_down_and_the_others_are_asked_on(tmp_path: Path) -> None:
    late = Answer(error="no answer within 60 s")
    nodes = FakeNodes(
        {
            ("b", "facts"): late,
            ("c", "reach"): Answer(value=["timed out"]),
            ("c", "all_reduce"): Answer(value="Connection refused"),
            ("a", "sees"): Answer(value=False),
        }
    )
    found = examine(nodes, folder=tmp_path)
    assert found.silent == (("b", "no answer within 60 s"),)
    assert found.links == (Link(source="a", target="c", error=None), Link(source="c", target="a", error="timed out"))
    assert (found.round_trip.num_ranks, found.round_trip.errors) == (2, (("c", "Connection refused"),))
    assert found.shared_folder is not None
    assert found.shared_folder.blind == ("a",)


def test_a_node_alone_is_connected_to_itself_and_has_both_ranks() -> None:
    nodes = FakeNodes({}, addresses=("a",))
    found = examine(nodes, folder=None)
    assert [(link.source, link.target) for link in found.links] == [("a", "a")]
    assert [each.arguments[1:3] for each in nodes.asked if each.method == "all_reduce"] == [(0, 2), (1, 2)]
    assert found.shared_folder is None


def test_nobody_answers() -> None:
    found = examine(FakeNodes({("a", "facts"): Answer(error="x")}, addresses=("a",)), folder=None)
    assert (found.nodes, found.links, found.clocks, found.round_trip.num_ranks) == ((), (), (), 0)


def test_this_machine_tells_of_itself(tmp_path: Path) -> None:
    nodes = ThisMachine("127.0.0.1")
    facts, unknown = nodes.ask(
        [
            Question(address="127.0.0.1", method="facts", arguments=(str(tmp_path / "not" / "there"),)),
            Question(address="127.0.0.1", method="reach", arguments=("not a list", 1.0)),
        ],
        seconds=60.0,
    )
    assert facts.error is None
    assert facts.value["python"] == sys.version.split()[0]
    assert facts.value["packages"]["ray"]
    assert facts.value["num_processes"] > 1
    assert facts.value["disk_free_bytes"] > 0
    assert unknown.error is not None


def test_a_listener_is_reached_and_a_closed_port_is_not() -> None:
    probe = NodeProbe()
    closed = probe.free_port()
    answers = probe.reach([("127.0.0.1", probe.listen()), ("127.0.0.1", closed)], 20.0)
    assert answers[0] is None
    assert answers[1] is not None


def test_somebody_else_at_the_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        assert NodeProbe().reach([("127.0.0.1", port)], 0.2) == ["timed out"]


@pytest.mark.timeout(200)
def test_two_processes_sum_and_a_missing_one_is_not_waited_for_for_ever() -> None:
    source = Path(node_probe.__file__).read_text()
    nodes = ThisMachine("127.0.0.1")
    (port,) = nodes.ask([Question(address="127.0.0.1", method="free_port")], seconds=20.0)
    ranks = [
        Question(address="127.0.0.1", method="all_reduce", arguments=(source, rank, 2, "127.0.0.1", port.value, 120.0))
        for rank in range(2)
    ]
    assert nodes.ask(ranks, seconds=150.0) == [Answer(value=None), Answer(value=None)]
    assert NodeProbe().all_reduce(source, 0, 2, "127.0.0.1", port.value, 0.1) == "no answer within 0.1 s"


def test_lines_of_nvidia_smi() -> None:
    text = "4242, 71234, GPU-aaaa\n77, [N/A], GPU-bbbb\n\nNo running processes found\n"
    assert parse_compute_apps(text) == [
        {"pid": 4242, "used_mib": 71234, "gpu": "GPU-aaaa"},
        {"pid": 77, "used_mib": 0, "gpu": "GPU-bbbb"},
    ]


def test_a_limit_of_processes_is_a_number() -> None:
    assert process_limit() == -1 or process_limit() > 0
