"""The tasks by name, and a user's own by its import path.

Adding one here: a file with its class, an entry below, its name in system/config/schema.py, a test.
"""

from collections.abc import Callable
from functools import partial

from system.config.imports import import_class, is_import_path
from system.config.schema import TaskConfig
from system.data.tasks.code import CodeTask
from system.data.tasks.gsm8k import Gsm8kTask
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.data.tasks.math import MathTask
from system.data.tasks.text_task import TextTask
from system.data.tasks.triplets import TripletsTask
from system.errors import ConfigError
from system.interfaces import Task


def _make_chains(config: TaskConfig) -> Task:
    for key in ("train_path", "test_path", "dataset"):
        given = getattr(config, key)
        if given is not None:
            raise ConfigError(
                f"task.{key}",
                given=given,
                expected="null: gsm8k_chains is shipped with the program",
                fix=f"remove task.{key}, or choose task.name=gsm8k or task.name=math",
            )
    return Gsm8kChainsTask(validation_size=config.validation_size, max_train_steps=config.max_train_steps)


def _make_text_task(kind: type[TextTask], config: TaskConfig) -> Task:
    return kind(
        train_path=config.train_path,
        test_path=config.test_path,
        dataset=config.dataset,
        validation_size=config.validation_size,
        max_bad_rows_share=config.max_bad_rows_share,
    )


TASK_FACTORIES: dict[str, Callable[[TaskConfig], Task]] = {
    "gsm8k_chains": _make_chains,
    "triplets": lambda config: TripletsTask(),
    "gsm8k": partial(_make_text_task, Gsm8kTask),
    "math": partial(_make_text_task, MathTask),
    "code": partial(_make_text_task, CodeTask),
}


TASK_METHODS = (
    "load", "redraw", "prompt_text", "cut_steps", "extract_answer", "reasoning_end", "answer_continuation",
)  # fmt: skip


def make_task(config: TaskConfig) -> Task:
    """The task that the section `task` names. Raises ConfigError when the section contradicts itself.

    A class of a user's own is a TextTask, made from paths or a data set as the built-in ones, or made of the section.
    """
    if not is_import_path(config.name):
        return TASK_FACTORIES[config.name](config)
    kind = import_class(config.name, key="task.name", methods=TASK_METHODS)
    task: Task = _make_text_task(kind, config) if issubclass(kind, TextTask) else kind(config)
    return task
