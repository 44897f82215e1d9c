"""The engines are started once for all tests of this folder; the last tests end them."""

from collections.abc import Iterator

import pytest

from tests.actors.rollout.engines import Rollout


@pytest.fixture(scope="session")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollout]:
    shared = Rollout(tmp_path_factory.mktemp("policies"))
    yield shared
    shared.close()
