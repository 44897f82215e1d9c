"""Endless supervised batches of redrawn chains, drawn by a child process. Called by system/commands/warmstart.py."""

import multiprocessing
import signal
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from system.data.tasks.gsm8k_chains import Gsm8kChainsTask

BATCHES_PER_CHUNK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    token_ids: tuple[int, ...]  # prompt, solution, end of sequence
    prompt_length: int  # tokens


class ExampleSource:
    """Draws chunks of redrawn training chains; what is in a chunk follows from (seed, chunk) alone.

    `vocabulary` gives the token of each character.
    """

    def __init__(self, vocabulary: Mapping[str, int], *, eos_token_id: int, seed: int, validation_size: int) -> None:
        self._task = Gsm8kChainsTask(validation_size=validation_size)
        self._problems = self._task.load("train")
        self._vocabulary = vocabulary
        self._eos_token_id = eos_token_id
        self._seed = seed

    def draw(self, chunk: int, *, num_examples: int) -> list[Example]:
        rng = np.random.default_rng((self._seed, chunk))
        return [self._draw_example(row, rng=rng) for row in rng.integers(len(self._problems), size=num_examples)]

    def _draw_example(self, row: int, *, rng: np.random.Generator) -> Example:
        problem = self._task.redraw(self._problems[row], rng=rng)
        prompt = [self._vocabulary[character] for character in f"{problem.question}:"]
        solution = [self._vocabulary[character] for character in problem.solution]
        return Example(token_ids=(*prompt, *solution, self._eos_token_id), prompt_length=len(prompt))


_source_of_this_child: ExampleSource | None = None


def _start_child(vocabulary: Mapping[str, int], eos_token_id: int, seed: int, validation_size: int) -> None:
    global _source_of_this_child
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    _source_of_this_child = ExampleSource(
        vocabulary, eos_token_id=eos_token_id, seed=seed, validation_size=validation_size
    )


def _draw_in_child(chunk: int, num_examples: int) -> list[Example]:
    assert _source_of_this_child is not None
    return _source_of_this_child.draw(chunk, num_examples=num_examples)


def stream_batches(
    vocabulary: Mapping[str, int], *, eos_token_id: int, seed: int, validation_size: int, batch_size: int
) -> Generator[list[Example], None, None]:
    """Batches of examples of similar length, so that little is padding; the next chunk is drawn while one trains.

    Close the iterator to end the child process.
    """
    num_examples = batch_size * BATCHES_PER_CHUNK
    pool = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_child,
        initargs=(dict(vocabulary), eos_token_id, seed, validation_size),
    )
    try:
        chunk = 0
        pending = pool.submit(_draw_in_child, chunk, num_examples)
        while True:
            examples = sorted(pending.result(), key=lambda example: len(example.token_ids))
            pending = pool.submit(_draw_in_child, chunk + 1, num_examples)
            order = np.random.default_rng((seed, chunk, 1)).permutation(BATCHES_PER_CHUNK)
            for batch in order.tolist():
                yield examples[batch * batch_size : (batch + 1) * batch_size]
            chunk += 1
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
