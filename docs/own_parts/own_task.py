"""A task of one's own: the embedded chains of two steps at most."""

from system.config.schema import TaskConfig
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.interfaces import Split
from system.records import Problem


class ShortChains(Gsm8kChainsTask):
    name = "short_chains"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(validation_size=config.validation_size, max_train_steps=2)

    def load(self, split: Split) -> list[Problem]:
        return super().load(split)[:400]
