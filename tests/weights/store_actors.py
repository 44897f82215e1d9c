"""Processes at the two ends of the object store; a module of its own, because Ray's workers import it by name."""

from system.weights import store
from system.weights.manifest import WeightsManifest
from tests.weights.memory_store import MemoryStore, some_tensors


class Publisher:
    """A process that owns what it puts."""

    def publish(self) -> WeightsManifest:
        memory = MemoryStore()
        manifest = memory.publish(some_tensors(), policy_version=1, bucket_bytes=100)
        references = tuple(store.put(each) for each in memory.fetch(manifest.references))
        return WeightsManifest(
            policy_version=1,
            architecture="test",
            buckets=manifest.buckets,
            digest=manifest.digest,
            references=references,
            canary_token_ids=(),
            canary_logprobs=None,
            publish_seconds=0.0,
        )


class Receiver:
    """A process that is handed a manifest."""

    def load(self, manifest: WeightsManifest) -> list[bytes]:
        return [bucket.tobytes() for bucket in store.fetch(manifest.references, seconds=20.0)]
