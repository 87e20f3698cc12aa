"""The tasks that a worker is told to offer, looked at before it joins."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from fedbus.base.errors import ChildDied, ConfigError, TaskFailed
from fedbus.runtime.child import Trainer
from fedbus.tasks.load import installed
from fedbus_schemas.plan import TaskName
from pydantic import TypeAdapter, ValidationError

_NAME = TypeAdapter(TaskName)


def read_offer(text: str) -> str:
    """The text of `--task`: `module:Class`, or the name of a task that is installed.

    Raises:
        ConfigError: it is neither; says what to write.
    """
    if text in installed():
        return text
    module, colon, _ = text.partition(":")
    module = re.sub(r"\.py$", "", module.removeprefix("./"))
    wrong = ConfigError(
        f"--task {text}: give the module and the class, module:Class",
        hint=f"for a class Mine in {module.replace('/', '.')}.py: --task {module.replace('/', '.')}:Mine "
        "(started from the folder in which the file lies)",
    )
    if not colon or "/" in text or text.partition(":")[0].endswith(".py"):
        raise wrong
    try:
        return _NAME.validate_python(text)
    except ValidationError:
        raise wrong from None


async def check_offers(tasks: tuple[str, ...], python: str) -> None:
    """See that each task of `--task` can be imported, in a child: the agent imports no training code.

    Raises:
        ConfigError: one cannot; says what is missing or wrong.
    """
    offers = [read_offer(task) for task in tasks]
    if not offers:
        return
    with tempfile.TemporaryDirectory(prefix="fedbus-") as folder:
        async with Trainer(Path(folder), python=python) as trainer:
            for task in offers:
                try:
                    await trainer.check(task)
                except ConfigError as error:
                    raise ConfigError(f"--task {task}: {error.message}", hint=error.hint) from error
                except (TaskFailed, ChildDied) as error:
                    raise ConfigError(
                        f"--task {task} cannot be imported: {error.message}", hint=error.hint
                    ) from error
