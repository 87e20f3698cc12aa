"""What `join --task` takes, and what it says to anything else."""

from __future__ import annotations

import pytest
from fedbus.base.errors import ConfigError
from fedbus_worker.offering import check_offers, read_offer


@pytest.mark.parametrize("text", ["iris:Iris", "pkg.mod:Task", "digits"])
def test_a_module_and_class_or_an_installed_name_is_taken(text: str) -> None:
    assert read_offer(text) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("iris", "iris:Mine"),
        ("iris.py", "iris:Mine"),
        ("./iris.py:Iris", "iris:Mine"),
        ("tasks/iris.py", "tasks.iris:Mine"),
        ("iris:", "iris:Mine"),
        ("iris:My Class", "iris:Mine"),
    ],
)
def test_anything_else_is_told_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="module:Class") as caught:
        read_offer(text)
    assert caught.value.exit_code == 10
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["nowhere_to_be:Found", "json:loads", "json:JSONDecoder", "json:Nothing"])
async def test_what_cannot_be_imported_is_refused_at_join(text: str) -> None:
    import sys

    with pytest.raises(ConfigError, match="--task"):
        await check_offers((text,), sys.executable)
