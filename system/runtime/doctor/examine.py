"""Asks the nodes, one question after the other, and writes down what they answer. Judges nothing.

facts of each node ─> clocks ─> TCP between each pair ─> all_reduce over all ─> a file that all should see
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from system.runtime.doctor import node_probe
from system.runtime.doctor.facts import Clock, Findings, Link, NodeFacts, RoundTrip, SharedFolder, node_facts
from system.runtime.doctor.nodes import Nodes, Question, host_of

_START_SECONDS = 60.0  # a node's first answer: an actor has to start there
_ANSWER_SECONDS = 20.0
_CONNECT_SECONDS = 5.0
_COLLECTIVE_SECONDS = 90.0  # torch has to be imported first
_NUM_CLOCK_READINGS = 5


def examine(nodes: Nodes, *, folder: Path | None, wall_clock: Callable[[], float] = time.time) -> Findings:
    """Everything about the nodes; `folder` is where the runs shall be."""
    asked = list(nodes.object_store_bytes)
    questions = [Question(address=each, method="facts", arguments=(_text(folder),)) for each in asked]
    found: list[NodeFacts] = []
    silent: list[tuple[str, str]] = []
    for address, answer in zip(asked, nodes.ask(questions, seconds=_START_SECONDS), strict=True):
        if answer.error is None:
            store = nodes.object_store_bytes[address]
            found.append(node_facts(address, object_store_bytes=store, answer=answer.value))
        else:
            silent.append((address, answer.error))
    addresses = [node.address for node in found]
    return Findings(
        where=nodes.where,
        nodes=tuple(found),
        silent=tuple(silent),
        links=tuple(_links(nodes, addresses)),
        clocks=tuple(clock for each in addresses if (clock := _clock(nodes, each, wall_clock=wall_clock))),
        round_trip=_round_trip(nodes, addresses),
        shared_folder=None if folder is None else _shared_folder(nodes, addresses, folder=folder),
    )


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)


def _clock(nodes: Nodes, address: str, *, wall_clock: Callable[[], float]) -> Clock | None:
    """The reading that took the shortest time."""
    readings = []
    for _ in range(_NUM_CLOCK_READINGS):
        before = wall_clock()
        (answer,) = nodes.ask([Question(address=address, method="clock")], seconds=_ANSWER_SECONDS)
        after = wall_clock()
        if answer.error is None:
            half = (after - before) / 2
            readings.append(
                Clock(address=address, ahead_seconds=answer.value - before - half, uncertainty_seconds=half)
            )
    return min(readings, key=lambda reading: reading.uncertainty_seconds, default=None)


def _links(nodes: Nodes, addresses: list[str]) -> list[Link]:
    """From every node to every other one; a node that is alone, to itself."""
    questions = [Question(address=each, method="listen") for each in addresses]
    answers = dict(zip(addresses, nodes.ask(questions, seconds=_ANSWER_SECONDS), strict=True))
    ports = {each: answer.value for each, answer in answers.items() if answer.error is None}
    links = [
        Link(source=each, target=each, error=f"it cannot listen: {answer.error}")
        for each, answer in answers.items()
        if answer.error is not None
    ]
    targets = {source: [target for target in ports if target != source or len(addresses) == 1] for source in addresses}
    questions = [
        Question(
            address=source,
            method="reach",
            arguments=([(host_of(target), ports[target]) for target in of_source], _CONNECT_SECONDS),
        )
        for source, of_source in targets.items()
    ]
    seconds = _ANSWER_SECONDS + _CONNECT_SECONDS * len(addresses)
    for (source, of_source), answer in zip(targets.items(), nodes.ask(questions, seconds=seconds), strict=True):
        errors = answer.value if answer.error is None else [answer.error] * len(of_source)
        links += [
            Link(source=source, target=target, error=error) for target, error in zip(of_source, errors, strict=True)
        ]
    return links


def _round_trip(nodes: Nodes, addresses: list[str]) -> RoundTrip:
    """One rank on each node; on one node two."""
    if not addresses:
        return RoundTrip(num_ranks=0, seconds=0.0, errors=())
    ranks = addresses if len(addresses) > 1 else addresses * 2
    (port,) = nodes.ask([Question(address=ranks[0], method="free_port")], seconds=_ANSWER_SECONDS)
    if port.error is not None:
        return RoundTrip(num_ranks=len(ranks), seconds=0.0, errors=((ranks[0], port.error),))
    source = Path(node_probe.__file__).read_text(encoding="utf-8")
    rendezvous = (host_of(ranks[0]), port.value, _COLLECTIVE_SECONDS)
    questions = [
        Question(address=each, method="all_reduce", arguments=(source, rank, len(ranks), *rendezvous))
        for rank, each in enumerate(ranks)
    ]
    start = time.monotonic()
    answers = nodes.ask(questions, seconds=_COLLECTIVE_SECONDS + _ANSWER_SECONDS)
    errors = [(each, answer.error or answer.value) for each, answer in zip(ranks, answers, strict=True)]
    return RoundTrip(
        num_ranks=len(ranks),
        seconds=time.monotonic() - start,
        errors=tuple((each, error) for each, error in errors if error is not None),
    )


def _shared_folder(nodes: Nodes, addresses: list[str], *, folder: Path) -> SharedFolder:
    """Written into the folder, or into the nearest one above it that exists."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    token = secrets.token_hex(16)
    probe = nearest / f".credence-doctor-{token}"
    try:
        probe.write_text(token)
    except OSError as error:
        return SharedFolder(folder=str(nearest), blind=(), error=str(error))
    try:
        questions = [Question(address=each, method="sees", arguments=(str(probe), token)) for each in addresses]
        answers = nodes.ask(questions, seconds=_ANSWER_SECONDS)
    finally:
        probe.unlink()
    blind = tuple(each for each, answer in zip(addresses, answers, strict=True) if answer.value is not True)
    return SharedFolder(folder=str(nearest), blind=blind)
