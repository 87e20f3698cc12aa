"""A plan as text: every key with its default and what it means, read off the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from fedbus_schemas.plan import Data, Named, Plan
from pydantic import BaseModel
from pydantic.fields import FieldInfo

# What the schema has no words for.
_MEANING = {
    "task": "a task that is installed on the workers, or module:Class",
    "rounds": "how many",
    "seed": "of the weights, the parts of the data, the selection and the training",
    "model.init": "the task's own first weights; or `from: RUN`, the last model of an earlier run",
    "cohort.select": "how members are chosen among the eligible workers",
    "close.late": "what becomes of updates that come after the round has closed",
    "train": "the task's own parameters; those left out have the task's defaults",
    "strategy": "how updates fold into one; or median, or {name: trimmed_mean, trim: 0.2}",
    "codec.up": "updates; or dense, bf16, ecq, eden, topk, auto",
    "codec.down": "models; or bf16, int8; or ecq, topk: as differences",
    "retain.rounds": "of so many closed rounds; or `retain: all`",
}
_COLUMN = 36


def commented_plan(task: str = "digits") -> str:
    """YAML of a plan with every key at its default, a comment on each. Only `task` must be given."""
    lines = ["# A plan: every key with its default. All but `task` may be left out; others are refused.", ""]
    for name, field in Plan.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name == "task":
            lines.append(_line(0, name, task, _MEANING[name]))
        elif name == "data":
            lines += ["", f"# {Data.__doc__}", "# data:"]
            lines += [f"# {line}" for line in _fields(Data(), "data")]
        elif isinstance(default, BaseModel) and not isinstance(default, Named):
            about = (type(default).__doc__ or "").split("\n")[0]
            empty: Any = None if type(default).model_fields else {}
            lines += ["", f"# {about}", _line(0, name, empty, "")]
            lines += _fields(default, name)
        else:
            after_section = lines[-1].startswith(("  ", "# "))
            lines += [""] if after_section else []
            lines.append(_line(0, name, default, _meaning(name, field)))
    return "\n".join(lines) + "\n"


def plain_plan(plan: Plan) -> dict[str, Any]:
    """A plan as a person writes it: every key, plug-ins in their short form, nothing that is not set."""
    values: dict[str, Any] = plan.model_dump(mode="json", by_alias=True)
    values["strategy"] = _short(plan.strategy)
    values["codec"] |= {"up": _short(plan.codec.up), "down": _short(plan.codec.down)}
    values["model"] = {key: value for key, value in values["model"].items() if value is not None}
    return {key: value for key, value in values.items() if value is not None}


def _fields(section: BaseModel, path: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is not None:
            yield _line(1, name, value, _meaning(f"{path}.{name}", field))


def _meaning(path: str, field: FieldInfo) -> str:
    said = _MEANING.get(path) or field.description or ""
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f"{said} (one of: {', '.join(choices)})" if len(choices) > 1 else said


def _line(depth: int, name: str, value: Any, meaning: str) -> str:
    said = "  " * depth + f"{name}:"
    if isinstance(value, Named):
        value = _short(value)
    if value is not None:
        # JSON is YAML; text that is a word needs no quotes.
        said += f" {value if isinstance(value, str) else json.dumps(value)}"
    return f"{said:<{_COLUMN}}# {meaning}" if meaning else said


def _short(named: Named) -> str | dict[str, Any]:
    return {"name": named.name, **named.params} if named.params else named.name
