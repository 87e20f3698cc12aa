"""Reading a plan file, with `--set` and `--rounds` over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedbus.base.errors import ConfigError, PlanRefused


def read_plan_file(path: Path, settings: tuple[str, ...] = (), rounds: int | None = None) -> dict[str, Any]:
    """A plan's keys and values; the planner checks them.

    Args:
        path: a YAML file.
        settings: `key.sub=value`, values as YAML.
        rounds: overrides the plan's.

    Raises:
        PlanRefused: the file is not a YAML mapping.
        ConfigError: it cannot be read, or a setting is malformed.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the plan {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanRefused(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise PlanRefused(f"{path} is not a plan: expected keys such as 'task: digits'")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as close.deadline_s=30")
        try:
            keys = key.split(".")
            _put(values, keys, _value(keys, text), setting)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: the value is not YAML") from error
    if rounds is not None:
        values["rounds"] = rounds
    return values


def _value(path: list[str], text: str) -> Any:
    """A setting's value as YAML has it; a label's is text, whatever it looks like."""
    value = yaml.safe_load(text)
    is_label = path[:2] == ["cohort", "require"] and len(path) > 2
    return text if is_label and not isinstance(value, str) else value


def _put(values: dict[str, Any], path: list[str], value: Any, setting: str) -> None:
    *sections, last = path
    for section in sections:
        inner = values.setdefault(section, {})
        if isinstance(inner, str):
            # `strategy: fedavg` is short for `{name: fedavg}`.
            inner = values[section] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {setting}: {section} is not a section of the plan")
        values = inner
    values[last] = value
