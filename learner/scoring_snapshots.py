"""Which snapshot the scoring replicas load: the newest, that of k versions ago, or a moving average.

Kept here, in one place, so that all replicas agree and a new one needs nothing from the others. Called by
publisher.py on rank 0: `start`, then `add` for each bucket, then `choose`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.background_writer import Write
from system.errors import CheckpointError
from system.weights.digest import both_sums, named_tensors, slot_view, snapshot_digest
from system.weights.manifest import Bucket, WeightsManifest, from_plain, to_plain
from system.weights.store import Buckets, Bytes

_AVERAGE_FILE = "average.safetensors"
Put = Callable[[Bytes], object]
Fetch = Callable[[Sequence[object]], Buckets]


class ScoringSnapshots(Protocol):
    """A rule from the sequence of published snapshots to the one that scores."""

    def start(self, policy_version: int) -> None: ...

    def add(self, bucket: Bucket, buffer: Tensor) -> None: ...

    def choose(self, manifest: WeightsManifest) -> WeightsManifest | None:
        """What scores from now on; None: `manifest` itself."""

    def capture(self, directory: str) -> Write:
        """Copy what cannot be had from the newest weights alone; what is returned writes it, at any later time."""

    def load(self, directory: str) -> None:
        """Continue from a `capture`. Raises CheckpointError when there is none of this mode."""


class NewestSnapshot:
    """Mode online, and offline, where replicas never load anything."""

    def start(self, policy_version: int) -> None:
        pass

    def add(self, bucket: Bucket, buffer: Tensor) -> None:
        pass

    def choose(self, manifest: WeightsManifest) -> WeightsManifest | None:
        return None

    def capture(self, directory: str) -> Write:
        return list

    def load(self, directory: str) -> None:
        pass


class LaggedSnapshots(NewestSnapshot):
    """The snapshot of `lag_versions` versions ago, the oldest known one until there are that many.

    The store keeps all of them, because their manifests are kept here.
    """

    def __init__(self, *, lag_versions: int, put: Put, fetch: Fetch) -> None:
        self._past: deque[WeightsManifest] = deque(maxlen=lag_versions + 1)
        self._put = put
        self._fetch = fetch

    def choose(self, manifest: WeightsManifest) -> WeightsManifest | None:
        if self._past and self._past[-1].policy_version == manifest.policy_version:
            self._past.pop()  # published once more after a resume
        self._past.append(manifest)
        return self._past[0] if self._past[0] is not manifest else None

    def capture(self, directory: str) -> Write:
        folder, past = Path(directory), list(self._past)  # snapshots in the store never change

        def write() -> Sequence[Path]:
            folder.mkdir(parents=True, exist_ok=True)
            files = []
            for manifest in past:
                buffers = enumerate(self._fetch(manifest.references))
                buckets = {f"{number:06d}": torch.tensor(buffer) for number, buffer in buffers}
                files.append(folder / f"version_{manifest.policy_version:06d}.safetensors")
                save_file(buckets, files[-1], metadata={"manifest": json.dumps(to_plain(manifest))})
            return files

        return write

    def load(self, directory: str) -> None:
        self._past.clear()
        for path in sorted(Path(directory).glob("version_*.safetensors")):
            with safe_open(path, framework="np") as file:
                references = tuple(self._put(file.get_tensor(key)) for key in sorted(file.keys()))
                self._past.append(from_plain(json.loads(file.metadata()["manifest"]), references=references))
        if not self._past:
            raise CheckpointError(f"{directory} holds no past weights, which scorer.mode=lagged continues from")


class AveragedSnapshot(NewestSnapshot):
    """ema_v = decay * ema_{v-1} + (1 - decay) * w_v, in float32 in host memory; the first weights start it.

    Its snapshot has the version v and no canary, because no learner ever runs it.
    """

    def __init__(self, *, decay: float, put: Put) -> None:
        self._decay = decay
        self._put = put
        self._average: dict[str, Tensor] = {}
        self._policy_version = -1
        self._is_new = False
        self._buckets: list[Bucket] = []
        self._references: list[object] = []

    def start(self, policy_version: int) -> None:
        self._is_new = policy_version > self._policy_version
        self._policy_version = max(policy_version, self._policy_version)
        self._buckets, self._references = [], []

    def add(self, bucket: Bucket, buffer: Tensor) -> None:
        for name, value in named_tensors(buffer, bucket):
            if name not in self._average:
                self._average[name] = value.float().clone()
            elif self._is_new:
                self._average[name].lerp_(value.float(), 1.0 - self._decay)
        averaged = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
        slots = []
        for slot in bucket.slots:
            view = slot_view(averaged, slot)
            view.copy_(self._average[slot.name])
            value, content = both_sums(view).tolist()
            slots.append(replace(slot, checksum=value, content_sum=content))
        self._buckets.append(replace(bucket, slots=tuple(slots)))
        self._references.append(self._put(averaged.numpy()))

    def choose(self, manifest: WeightsManifest) -> WeightsManifest | None:
        return replace(
            manifest,
            buckets=tuple(self._buckets),
            references=tuple(self._references),
            digest=snapshot_digest(slot for bucket in self._buckets for slot in bucket.slots),
            canary_logprobs=None,
        )

    def capture(self, directory: str) -> Write:
        path, version = Path(directory) / _AVERAGE_FILE, self._policy_version
        average = {name: value.clone() for name, value in self._average.items()}

        def write() -> Sequence[Path]:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(average, path, metadata={"policy_version": str(version)})
            return [path]

        return write

    def load(self, directory: str) -> None:
        path = Path(directory) / _AVERAGE_FILE
        try:
            self._average = load_file(path)
            with safe_open(path, framework="pt") as file:
                self._policy_version = int(file.metadata()["policy_version"])
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing, which scorer.mode=ema continues from") from error
