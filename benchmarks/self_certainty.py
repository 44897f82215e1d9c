"""Time and peak memory of the fused token statistics against the plain formulas on whole logits.

    time_ratio         = seconds of the fused pass / seconds of the plain one      (target at most 1.0)
    extra_memory_ratio = peak memory of the fused pass / peak of the plain one     (target at most 0.05)

Run: python benchmarks/self_certainty.py [--device cuda] (no arguments: CPU, about four minutes on two cores). Float32
parameters of the size of Qwen2.5-1.5B's LM head, 512 to 8,192 tokens at a time. The main figures are those of a
scorer: forward, gradient off. Each method has a process of its own; the two take turns, and the figures are medians
over rounds. Memory is what the first pass adds at its peak to a process that holds the parameters: the high-water mark
of its resident memory (CPU, Linux) or of torch's allocator (CUDA). The plain formulas are left out where free memory
does not suffice; the memory ratio is then taken against the logits alone, which they need at least. With gradient,
forward and backward are timed at the smallest size; backward computes the logits again, which is what the saving of
memory costs.
The last line is one line of JSON.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.numerics.logprobs import TokenStatistics, require_finite, token_statistics

VOCABULARY = 151_936
HIDDEN_SIZE = 1_536
NUM_THREADS = 2
NUM_ROUNDS = {512: 5, 2_048: 3, 8_192: 2}  # by number of tokens
NUM_TRAIN_ROUNDS = 2
PLAIN_MATRICES = 3.2  # float32 [T, V] at the peak of the plain formulas, with a margin
TOLERANCE = 1e-3  # nats, between two orders of summation over 1,536 products
MIB = 2**20


class Answer(NamedTuple):
    """Of one pass over all tokens."""

    seconds: float
    extra_bytes: int  # peak memory above the parameters; means something for the first pass of a process only
    values: np.ndarray  # float32 [3, T]: log-probability, entropy, self-certainty


def plain_statistics(hidden: Tensor, *, weight: Tensor, target_ids: Tensor) -> TokenStatistics:
    """What trainers do that have the logits [T, V] at hand."""
    logits = hidden @ weight.T
    logsumexp = logits.logsumexp(dim=-1)
    return TokenStatistics(
        logprobs=logits.gather(1, target_ids[:, None])[:, 0] - logsumexp,
        entropy=logsumexp - (logits.softmax(dim=-1) * logits).sum(dim=-1),
        self_certainty=(logsumexp - logits.mean(dim=-1) - math.log(logits.shape[1])).detach(),
    )


METHODS: dict[str, Callable[..., TokenStatistics]] = {"plain": plain_statistics, "fused": token_statistics}


class MemoryMeter:
    """Peak memory of this process above what it held when the meter was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._baseline = torch.cuda.memory_allocated(device)
        else:
            self._baseline = _resident_bytes("VmRSS")

    def extra_bytes(self) -> int:
        is_cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if is_cuda else _resident_bytes("VmHWM")
        return peak - self._baseline


def _resident_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}: memory can be measured on Linux only")
    return int(found[1]) * 1024


def serve(connection: Connection, method: str, *, num_tokens: int, device_name: str) -> None:
    """Child process: answers each "forward" or "train" with an Answer."""
    torch.set_num_threads(NUM_THREADS)
    device = torch.device(device_name)
    torch.manual_seed(0)
    # Filled in place, so that the high-water mark is that of the parameters and not of making them.
    weight = torch.empty(VOCABULARY, HIDDEN_SIZE, device=device).normal_().mul_(0.05).requires_grad_()
    hidden = torch.empty(num_tokens, HIDDEN_SIZE, device=device).normal_().requires_grad_()
    target_ids = torch.randint(0, VOCABULARY, (num_tokens,), device=device)
    compute = METHODS[method]
    with torch.no_grad():  # starts threads and libraries without leaving memory behind that a pass could use
        compute(hidden[:4], weight=weight[:64], target_ids=target_ids[:4] % 64)
    meter = MemoryMeter(device)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        is_train = request == "train"
        synchronise(device)
        start = time.perf_counter()
        with torch.set_grad_enabled(is_train):
            result = compute(hidden, weight=weight, target_ids=target_ids)
            if is_train:
                result.logprobs.sum().backward()
        synchronise(device)
        seconds = time.perf_counter() - start
        extra_bytes = meter.extra_bytes()
        require_finite(result, what=method)
        connection.send(Answer(seconds, extra_bytes, torch.stack(list(result)).detach().cpu().numpy()))
        hidden.grad = weight.grad = None


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Child:
    """A process that holds the parameters and runs one method when asked."""

    def __init__(self, method: str, *, num_tokens: int, device_name: str) -> None:
        context = get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=serve,
            args=(other_end, method),
            kwargs={"num_tokens": num_tokens, "device_name": device_name},
            daemon=True,
        )
        self._process.start()
        other_end.close()  # so that the death of the child ends recv
        self._connection.recv()

    def ask(self, request: str) -> Answer:
        self._connection.send(request)
        answer: Answer = self._connection.recv()
        return answer

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


def why_plain_does_not_fit(num_tokens: int, *, device_name: str) -> str:
    """Empty when there is memory for it."""
    num_processes = 1 if device_name == "cuda" else 2
    parameters = num_processes * 4 * HIDDEN_SIZE * (VOCABULARY + num_tokens)
    needed = PLAIN_MATRICES * 4 * num_tokens * VOCABULARY + parameters
    free = torch.cuda.mem_get_info()[0] if device_name == "cuda" else psutil.virtual_memory().available
    if needed <= free:
        return ""
    return f"{num_tokens} tokens need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def take_turns(children: dict[str, Child], request: str, *, num_rounds: int) -> dict[str, list[Answer]]:
    answers: dict[str, list[Answer]] = {method: [] for method in children}
    for number in range(num_rounds):
        for method in list(children) if number % 2 == 0 else list(reversed(children)):
            answers[method].append(children[method].ask(request))
        seconds = ", ".join(f"{method} {answers[method][-1].seconds:.2f} s" for method in children)
        print(f"  {request} {number + 1}: {seconds}", flush=True)
    if len(children) == 2:
        difference = float(np.abs(answers["fused"][0].values - answers["plain"][0].values).max())
        if difference > TOLERANCE:
            raise RuntimeError(f"the two methods differ by {difference:.2g} nats")
    return answers


def measure(num_tokens: int, *, device_name: str, with_train: bool) -> dict[str, float | str]:
    """Figures of one size, their names ending in the number of tokens."""
    reason = why_plain_does_not_fit(num_tokens, device_name=device_name)
    print(f"{num_tokens} tokens" + (f" (without the plain formulas: {reason})" if reason else ""), flush=True)
    methods = ["fused"] if reason else ["plain", "fused"]
    children = {method: Child(method, num_tokens=num_tokens, device_name=device_name) for method in methods}
    forward = take_turns(children, "forward", num_rounds=NUM_ROUNDS[num_tokens])
    train = take_turns(children, "train", num_rounds=NUM_TRAIN_ROUNDS) if with_train else {}
    for child in children.values():
        child.close()
    figures: dict[str, float | str] = {}
    for method in methods:
        figures[f"{method}_seconds_{num_tokens}"] = median_seconds(forward[method])
        figures[f"{method}_extra_mib_{num_tokens}"] = forward[method][0].extra_bytes / MIB
        if train:
            figures[f"{method}_train_seconds_{num_tokens}"] = median_seconds(train[method])
    extra_bytes = forward["fused"][0].extra_bytes
    if reason:
        figures[f"plain_skipped_{num_tokens}"] = reason
        figures[f"extra_memory_ratio_{num_tokens}"] = extra_bytes / (4 * num_tokens * VOCABULARY)
        return figures
    figures[f"extra_memory_ratio_{num_tokens}"] = extra_bytes / forward["plain"][0].extra_bytes
    figures[f"time_ratio_{num_tokens}"] = median_seconds(forward["fused"]) / median_seconds(forward["plain"])
    if train:
        figures[f"train_time_ratio_{num_tokens}"] = median_seconds(train["fused"]) / median_seconds(train["plain"])
    return figures


def median_seconds(answers: list[Answer]) -> float:
    return statistics.median(answer.seconds for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--num-tokens", type=int, nargs="+", choices=list(NUM_ROUNDS), default=list(NUM_ROUNDS))
    arguments = parser.parse_args()
    sizes = sorted(arguments.num_tokens)
    figures: dict[str, float | str] = {"device": arguments.device}
    for num_tokens in sizes:
        figures |= measure(num_tokens, device_name=arguments.device, with_train=num_tokens == sizes[0])
    # Time at the largest size that both could run, memory at the largest.
    compared = [num_tokens for num_tokens in sizes if f"time_ratio_{num_tokens}" in figures]
    if compared:
        figures |= {"time_ratio": figures[f"time_ratio_{compared[-1]}"], "time_ratio_tokens": compared[-1]}
    figures |= {
        "extra_memory_ratio": figures[f"extra_memory_ratio_{sizes[-1]}"],
        "extra_memory_ratio_tokens": sizes[-1],
        "extra_memory_ratio_against": "plain" if sizes[-1] in compared else "logits alone",
    }
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}))


if __name__ == "__main__":
    main()
