"""A checkpoint that is written while training goes on, over a learner that counts its steps, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from system.data.file_stamps import FileStamp, stamp_files
from system.errors import CheckpointError
from system.runtime.checkpoint import CheckpointStore
from system.runtime.checkpoint_writing import CheckpointWriting
from tests.runtime.saved_states import make_state
from tests.virtual_time import run_in_virtual_time

COPY_SECONDS, WRITE_SECONDS = 2.0, 50.0


class CountingLearner:
    """Its weights are its version; what was copied is what is written, whatever it has become since."""

    def __init__(self) -> None:
        self.version = 0
        self.fails: str | None = None
        self._copied: tuple[Path, int] | None = None

    async def start_checkpoint(self, directory: Path) -> None:
        await asyncio.sleep(COPY_SECONDS)
        self._copied = (directory, self.version)

    async def written_checkpoint(self, *, seconds: float) -> dict[str, FileStamp]:
        assert self._copied is not None
        directory, version = self._copied
        await asyncio.sleep(WRITE_SECONDS)
        if self.fails is not None:
            raise CheckpointError(self.fails)
        (directory / "weights").write_text(str(version))
        return stamp_files([directory / "weights"])


class Run:
    def __init__(self, folder: Path) -> None:
        self.learner = CountingLearner()
        self.store = CheckpointStore(folder, keep=3)
        self.writing = CheckpointWriting(learner_group=self.learner, store=self.store, timeout_seconds=100.0)

    async def save(self) -> float:
        """Saves the version that the learner has; the seconds that it had to wait."""
        start = asyncio.get_running_loop().time()
        await self.writing.start(make_state(policy_version=self.learner.version))
        return asyncio.get_running_loop().time() - start

    @property
    def complete(self) -> list[tuple[str, str]]:
        return [(path.name, (path / "weights").read_text()) for path in self.store.complete()]


Scenario = Callable[[Run], Coroutine[Any, Any, None]]


def play(folder: Path, scenario: Scenario) -> None:
    run_in_virtual_time(scenario(Run(folder)), seconds=1000.0)


def test_the_learner_waits_for_the_copy_and_what_is_written_is_what_was_copied(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        run.learner.version = 4
        assert await run.save() == pytest.approx(COPY_SECONDS)
        run.learner.version = 9  # trained on
        assert run.complete == []
        await run.writing.finish()
        assert run.complete == [("update_000004", "4")]

    play(tmp_path, scenario)


def test_the_next_one_waits_until_the_one_before_is_written(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        await run.save()
        run.learner.version = 1
        assert await run.save() == pytest.approx(WRITE_SECONDS + COPY_SECONDS)
        assert run.complete == [("update_000000", "0")]
        await run.writing.finish()
        assert run.complete == [("update_000000", "0"), ("update_000001", "1")]
        assert len(run.writing.take_seconds()) == 2
        assert run.writing.take_seconds() == []

    play(tmp_path, scenario)


def test_what_went_wrong_is_raised_by_the_next_save_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        run.learner.fails = "learner rank 1 could not write: No space left on device"
        await run.save()
        await asyncio.sleep(2 * WRITE_SECONDS)
        with pytest.raises(CheckpointError, match="learner rank 1 could not write"):
            await run.save()
        assert run.complete == []
        run.learner.fails = None
        await run.save()  # it is raised once
        await run.writing.finish()
        assert run.complete == [("update_000000", "0")]

    play(tmp_path, scenario)


def test_it_has_no_name_before_what_was_logged_is_on_disk(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        logged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await run.writing.start(make_state(policy_version=0), after=[logged])
        await asyncio.sleep(2 * WRITE_SECONDS)
        assert run.complete == []
        logged.set_result(None)
        await run.writing.finish()
        assert run.complete == [("update_000000", "0")]

    play(tmp_path, scenario)


def test_a_run_that_is_stopped_gives_the_last_one_its_time(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        await run.save()
        waiting = asyncio.create_task(run.writing.finish())
        await asyncio.sleep(1.0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await run.writing.close(seconds=WRITE_SECONDS)
        assert run.complete == [("update_000000", "0")]

    play(tmp_path, scenario)


def test_one_that_takes_longer_is_given_up(tmp_path: Path) -> None:
    async def scenario(run: Run) -> None:
        await run.save()
        await run.writing.close(seconds=WRITE_SECONDS / 2)
        await asyncio.sleep(WRITE_SECONDS)
        assert run.complete == []
        assert [path.name for path in run.store.discard_partial()] == ["update_000000.partial"]

    play(tmp_path, scenario)
