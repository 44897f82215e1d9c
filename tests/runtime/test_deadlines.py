"""A wait that runs out names everyone who did not answer; a real error keeps its type and gets a name."""

import asyncio
import time

import pytest
from ray.exceptions import RayTaskError

from system.errors import DeadlineError, EngineFailedError
from system.runtime.deadlines import all_within, within


async def answer(value: int, *, after: float = 0.0) -> int:
    await asyncio.sleep(after)
    return value


async def fail(message: str, *, after: float = 0.0) -> int:
    await asyncio.sleep(after)
    raise ValueError(message)


def test_result_in_time_is_returned() -> None:
    assert asyncio.run(within(answer(7), who="rollout-0", what="generate", seconds=5)) == 7


def test_late_answer_names_who_and_what() -> None:
    with pytest.raises(DeadlineError, match=r"rollout-0 did not finish 'generate' within 0.01 s") as caught:
        asyncio.run(within(answer(7, after=30), who="rollout-0", what="generate", seconds=0.01))
    assert caught.value.who == "rollout-0"


def test_deadline_holds_when_cancellation_is_refused() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(0.3)
            except asyncio.CancelledError:
                continue

    async def main() -> float:
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            await within(stubborn(), who="rollout-0", what="generate", seconds=0.01)
        return time.monotonic() - start

    assert asyncio.run(main()) < 0.25


def test_timeout_error_of_the_awaited_code_is_no_deadline() -> None:
    async def inner() -> None:
        raise TimeoutError("socket")

    with pytest.raises(TimeoutError, match="socket"):
        asyncio.run(within(inner(), who="learner-0", what="train", seconds=5))


def test_all_who_did_not_answer_are_named() -> None:
    cancelled: list[str] = []

    async def hang(who: str) -> int:
        try:
            return await answer(0, after=30)
        except asyncio.CancelledError:
            cancelled.append(who)
            raise

    async def main() -> None:
        waits = {"rollout-0": answer(1), "rollout-1": hang("rollout-1"), "rollout-2": hang("rollout-2")}
        with pytest.raises(DeadlineError, match="rollout-1, rollout-2 did not finish 'receive weights'"):
            await all_within(waits, what="receive weights", seconds=0.01)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert cancelled == ["rollout-1", "rollout-2"]


def test_results_come_back_by_name() -> None:
    waits = {"b": answer(2, after=0.01), "a": answer(1)}
    assert asyncio.run(all_within(waits, what="join", seconds=5)) == {"b": 2, "a": 1}
    assert asyncio.run(all_within({}, what="join", seconds=5)) == {}


def test_first_error_ends_the_wait_and_names_its_owner() -> None:
    start = time.monotonic()
    waits = {"rollout-0": answer(1, after=30), "learner-1": fail("shard"), "learner-2": fail("later", after=30)}
    with pytest.raises(ValueError, match="shard") as caught:
        asyncio.run(all_within(waits, what="gather", seconds=20))
    assert caught.value.__notes__ == ["learner-1 failed at 'gather'"]
    assert time.monotonic() - start < 5


def test_an_error_of_ours_arrives_from_an_actor_as_it_was_raised_there() -> None:
    remote = RayTaskError(
        "start", "Traceback ...\nEngineFailedError: no such model", EngineFailedError("no such model")
    )

    async def ask() -> None:
        raise remote.as_instanceof_cause()

    with pytest.raises(EngineFailedError) as caught:
        asyncio.run(within(ask(), who="rollout worker 0", what="start", seconds=5))
    assert str(caught.value) == "no such model"
    assert isinstance(caught.value.__cause__, RayTaskError)


def test_cancelled_caller_cancels_everyone() -> None:
    cancelled: list[str] = []

    async def hang(who: str) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(who)
            raise

    async def main() -> None:
        wait = asyncio.create_task(all_within({"a": hang("a"), "b": hang("b")}, what="join", seconds=20))
        await asyncio.sleep(0.01)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        await asyncio.sleep(0)

    asyncio.run(main())
    assert cancelled == ["a", "b"]
