"""Time to bring new weights to receivers, by broadcast and from the store, over a plain Gloo broadcast of their bytes.

    sender actor      publish (SnapshotPublisher: gather, checksums, store) ─> manifest;  send | plain send
    receiver actors   broadcast: receive, check, load         generation pauses for all of it
                      store: fetch, stage, check, then load   generation pauses for the load alone

The system's own publisher, broadcast, staging and digest; the model is a dictionary of matrices, and loading is copying
into it, as an engine does. Ways are measured in turn, round after round, on every size and number of receivers, until
the cell's share of the time is used; figures are medians. Run it without arguments; it takes under five minutes.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from learner.publisher import SnapshotPublisher  # noqa: E402
from learner.scoring_snapshots import NewestSnapshot  # noqa: E402
from learner.worker import free_port  # noqa: E402
from system.weights import store  # noqa: E402
from system.weights.broadcast import WeightGroup, receive_buckets, send_buckets  # noqa: E402
from system.weights.digest import checked_buckets, named_tensors  # noqa: E402
from system.weights.manifest import WeightGroupSpec, WeightsManifest  # noqa: E402
from system.weights.staging import staged, staged_buckets  # noqa: E402

SIZES_MB = (10, 100, 1000)
NUM_RECEIVERS = (1, 2, 4)
SECONDS_PER_CELL = {10: 4.0, 100: 10.0, 1000: 24.0}
WAYS = ("plain", "broadcast", "store")
BUCKET_BYTES = 8 << 20  # as in configs/demo.yaml
TIMEOUT_SECONDS = 60.0
CPU = torch.device("cpu")


def make_weights(size_mb: int) -> dict[str, torch.nn.Parameter]:
    """Matrices of a million bytes each."""
    return {f"layers.{index}.weight": torch.nn.Parameter(torch.randn(500, 500)) for index in range(size_mb)}


class PlainEngine:
    """What the publisher asks of DeepSpeed, for a model that is not sharded."""

    def __init__(self, weights: dict[str, torch.nn.Parameter]) -> None:
        self._weights = weights

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self._weights

    @contextmanager
    def gathered(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        yield


class Sender:
    """The part of learner rank 0."""

    def __init__(self, size_mb: int) -> None:
        torch.set_num_threads(1)
        self._weights = make_weights(size_mb)
        engine: Any = PlainEngine(self._weights)
        self._publisher = SnapshotPublisher(
            engine, rank=0, architecture="plain", bucket_bytes=BUCKET_BYTES, put=store.put, scoring=NewestSnapshot()
        )
        self._version = 0
        self._flat = torch.zeros(self._publisher.snapshot_bytes, dtype=torch.uint8)

    def rendezvous(self) -> tuple[str, int]:
        return store.node_address(), free_port(store.node_address())

    def publish(self) -> tuple[WeightsManifest, float, dict[str, float]]:
        """A changed snapshot, the seconds that it took, and MiB of memory of this process beyond its weights."""
        self._version += 1
        with torch.no_grad():
            self._weights["layers.0.weight"].add_(1.0)
        with watched_memory() as memory:
            start = time.perf_counter()
            manifest = self._publisher.publish(
                policy_version=self._version, canary_token_ids=[0, 1], canary_logprobs=np.zeros(1, np.float32)
            )
            seconds = time.perf_counter() - start
        assert manifest is not None
        return manifest, seconds, memory

    def open(self, spec: WeightGroupSpec) -> None:
        self._group = WeightGroup(spec, rank=0)

    def send(self, manifest: WeightsManifest) -> None:
        buffers = (torch.from_numpy(each) for each in store.fetch(manifest.references, seconds=TIMEOUT_SECONDS))
        send_buckets(self._group, buffers, manifest=manifest, device=CPU)

    def plain(self) -> None:
        plain_broadcast(self._group, self._flat)

    def close(self) -> None:
        self._group.close()


class Receiver:
    """The part of a rollout worker and its engine."""

    def __init__(self, size_mb: int) -> None:
        torch.set_num_threads(1)
        self._weights = make_weights(size_mb)
        self._flat = torch.zeros(4 * sum(each.numel() for each in self._weights.values()), dtype=torch.uint8)

    def open(self, spec: WeightGroupSpec, rank: int) -> None:
        self._group = WeightGroup(spec, rank=rank)

    def receive(self, manifest: WeightsManifest) -> float:
        """By broadcast; seconds of the pause."""
        start = time.perf_counter()
        for tensors in checked_buckets(receive_buckets(self._group, manifest, device=CPU), manifest):
            self._load(tensors)
        return time.perf_counter() - start

    def load(self, manifest: WeightsManifest) -> float:
        """From the store; seconds of the pause."""
        buffers = store.fetch(manifest.references, seconds=TIMEOUT_SECONDS)
        with staged(buffers, manifest) as path:
            start = time.perf_counter()
            for buffer, bucket in zip(staged_buckets(path, manifest.buckets), manifest.buckets, strict=True):
                self._load(named_tensors(buffer, bucket))
            return time.perf_counter() - start

    def plain(self) -> None:
        plain_broadcast(self._group, self._flat)

    def close(self) -> None:
        self._group.close()

    @torch.no_grad()
    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            self._weights[name].copy_(tensor)


def plain_broadcast(group: WeightGroup, buffer: torch.Tensor) -> None:
    """One call over all bytes."""
    work: dist.Work = group.broadcast(buffer)
    work.wait()


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Anonymous memory of this process in MiB beyond what it had before: `peak` meanwhile and `after`."""
    result: dict[str, float] = {}
    before = private_mib()
    samples = [before]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.002):
            samples.append(private_mib())

    watcher = threading.Thread(target=sample)
    watcher.start()
    yield result
    is_over.set()
    watcher.join()
    result |= {"peak": max(samples) - before, "after": private_mib() - before}


def private_mib() -> float:
    """Without the store's shared memory, which is one snapshot a node."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def start_way(name: str, sender: Any, receivers: Sequence[Any], manifest: WeightsManifest) -> list[Any]:
    """The calls of one way, all at once."""
    if name == "plain":
        return [sender.plain.remote(), *(each.plain.remote() for each in receivers)]
    if name == "broadcast":
        return [sender.send.remote(manifest), *(each.receive.remote(manifest) for each in receivers)]
    return [each.load.remote(manifest) for each in receivers]


def measure_cell(sender: Any, receivers: Sequence[Any], *, seconds: float) -> dict[str, float]:
    """Medians over as many rounds as fit into `seconds`, at least one after a warm-up."""
    host, port = ray.get(sender.rendezvous.remote())
    spec = WeightGroupSpec(
        group_name=f"benchmark-{len(receivers)}",
        host=host,
        port=port,
        world_size=1 + len(receivers),
        backend="gloo",
        timeout_seconds=TIMEOUT_SECONDS,
        secret="benchmark",
    )
    joins = [receiver.open.remote(spec, 1 + index) for index, receiver in enumerate(receivers)]
    ray.get([sender.open.remote(spec), *joins])
    rounds: dict[str, list[float]] = {}
    start = time.perf_counter()
    for number in range(1000):
        manifest, publish_seconds, memory = ray.get(sender.publish.remote())
        # another order each time, so that no way always comes after the same one
        order = [WAYS[(number + offset) % 3] for offset in range(3)]
        measured = {"publish": publish_seconds, "peak_mib": memory["peak"], "after_mib": memory["after"]}
        for name in order:
            mark = time.perf_counter()
            answers = ray.get(start_way(name, sender, receivers, manifest))
            measured[name] = time.perf_counter() - mark
            measured[f"{name}_pause"] = max((answer for answer in answers if answer is not None), default=0.0)
        if number > 0:
            for name, value in measured.items():
                rounds.setdefault(name, []).append(value)
        if number > 0 and time.perf_counter() - start > seconds:
            break
    ray.get([sender.close.remote(), *(each.close.remote() for each in receivers)])
    return {name: statistics.median(values) for name, values in rounds.items()} | {"rounds": number}


def main() -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        num_cpus=1 + max(NUM_RECEIVERS),
        object_store_memory=3 << 30,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}},
    )
    cells: dict[str, dict[str, float]] = {}
    print(f"{'MB':>5} {'receivers':>9} {'plain s':>8} {'broadcast':>9} {'store':>6} {'publish s':>9} "
          f"{'pause s: broadcast':>18} {'store':>6} {'rank 0 MiB: peak':>16} {'after':>6} {'rounds':>6}")  # fmt: skip
    for size_mb in SIZES_MB:
        needed = (2 * max(NUM_RECEIVERS) + 5) * size_mb * 10**6
        if psutil.virtual_memory().available < needed:
            print(f"{size_mb:>5} left out: it needs {needed / 2**30:.0f} GiB of memory")
            continue
        sender = ray.remote(Sender).remote(size_mb)
        receivers = [ray.remote(Receiver).remote(size_mb) for _ in range(max(NUM_RECEIVERS))]
        for count in NUM_RECEIVERS:
            cell = measure_cell(sender, receivers[:count], seconds=SECONDS_PER_CELL[size_mb])
            cells[f"{size_mb}x{count}"] = cell
            print(f"{size_mb:>5} {count:>9} {cell['plain']:>8.3f} {cell['broadcast'] / cell['plain']:>8.2f}x "
                  f"{cell['store'] / cell['plain']:>5.2f}x {cell['publish']:>9.3f} {cell['broadcast_pause']:>18.3f} "
                  f"{cell['store_pause']:>6.3f} {cell['peak_mib']:>16.0f} {cell['after_mib']:>6.0f} "
                  f"{cell['rounds']:>6.0f}", flush=True)  # fmt: skip
        for actor in (sender, *receivers):
            ray.kill(actor)
    ray.shutdown()
    largest = max(int(name.split("x")[0]) for name in cells)
    figures = {
        "time_over_plain_broadcast": worst(cells, "broadcast", "plain"),
        "store_time_over_plain_broadcast": worst(cells, "store", "plain"),
        "store_pause_over_broadcast_pause": worst(cells, "store_pause", "broadcast_pause"),
        "publish_seconds_of_largest": round(cells[f"{largest}x1"]["publish"], 3),
        "rank0_peak_mib_beyond_its_share": round(max(cell["peak_mib"] for cell in cells.values()), 1),
        "rank0_mib_kept_beyond_its_share": round(max(cell["after_mib"] for cell in cells.values()), 1),
        "bucket_mib": BUCKET_BYTES >> 20,
        "largest_mb": largest,
        "targets": {"time_over_plain_broadcast": 2.0, "store_pause_over_broadcast_pause": 1.0},
    }
    print(json.dumps(figures))


def worst(cells: dict[str, dict[str, float]], name: str, over: str) -> float:
    """The largest ratio of two medians over all cells."""
    return round(max(cell[name] / cell[over] for cell in cells.values()), 3)


if __name__ == "__main__":
    main()
