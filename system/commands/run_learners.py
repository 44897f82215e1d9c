"""The learner groups of one run: the first one, and one more each time that a rank was lost. Used by train.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from system.commands.run_inputs import RunInputs
from system.config.schema import Config
from system.runtime.learner_group import LearnerGroup
from system.runtime.learner_recovery import Position
from system.runtime.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLearners:
    config: Config
    inputs: RunInputs
    placement: Placement
    run_folder: Path

    def create(self) -> LearnerGroup:
        """New actors; those of the group before are gone when it returns, or end soon."""
        return LearnerGroup(
            actors=self.placement.create_learner_actors(),
            config=self.config.learner,
            weight_sync=self.config.weight_sync,
            scorer=self.config.scorer,
            canary_token_ids=self.inputs.canary_token_ids,
        )

    async def start(self, learner_group: LearnerGroup, position: Position) -> None:
        """Raises LearnerDiedError, ConfigError, CheckpointError."""
        await learner_group.check_folder_is_shared(self.run_folder)
        await learner_group.start()
        if position.state is not None and position.checkpoint is not None:
            await learner_group.load_checkpoint(position.checkpoint, policy_version=position.state.policy_version)
