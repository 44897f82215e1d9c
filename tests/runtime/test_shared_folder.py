"""The probe of the run folder: every learner rank has to see what the controller writes."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from system.config.schema import LearnerConfig, ScorerConfig, WeightSyncConfig
from system.errors import ConfigError
from system.runtime.learner_group import LearnerGroup
from tests.fakes import FakeActor


@dataclass(eq=False)
class RankOnNode(FakeActor):
    """A learner rank whose node has `folder` mounted at the path that the controller names."""

    folder: Path = Path()

    async def on_sees_file(self, path: str, text: str) -> bool:
        seen = self.folder / Path(path).name
        return seen.is_file() and seen.read_text() == text


def group_on(*folders: Path) -> LearnerGroup:
    return LearnerGroup(
        actors=[RankOnNode(folder=folder) for folder in folders],
        config=LearnerConfig(num_ranks=len(folders), learning_rate=1e-3),
        weight_sync=WeightSyncConfig(),
        scorer=ScorerConfig(),
        canary_token_ids=[1, 2],
    )


def test_ranks_that_share_the_folder_pass_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    asyncio.run(group_on(tmp_path, tmp_path).check_folder_is_shared(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_rank_on_a_node_with_another_folder_is_named(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    with pytest.raises(ConfigError, match=r"run\.directory: .* learner rank 1 sees another one there"):
        asyncio.run(group_on(here, elsewhere).check_folder_is_shared(here))
    assert list(here.iterdir()) == []
