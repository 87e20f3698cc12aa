"""Every error of fedbus, in one tree.

    FedbusError                   code, retryable, exit_code, hint
      ConfigError             10  a setting or an argument is missing or wrong
      ContractError           20  a message breaks its schema
        RemoteContractError       a peer sent it: refuse, name the peer
      RoundError              30  PlanRefused, UnknownName, UnknownRun, RunAborted, RunEnded,
                                  UnknownModel, ModelRefused
      CodecError              40  ChunkRefused, DigestMismatch
      BusError                50  BusUnavailable, AuthRefused, TlsRefused, NotAcked, StreamFull,
                                  StreamMissing, PayloadTooLarge, ServerTooOld
      EnrolmentError          60  InviteRefused, UnknownInvite, NameTaken, UnknownWorker
      TaskError               70  TaskMissing, TaskFailed, ChildDied: the user's training code, not ours

The docstring is the default message. `retryable` says whether the same call may succeed later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

from pydantic import ValidationError


class FedbusError(Exception):
    """Something went wrong in fedbus."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (self.__doc__ or type(self).__name__).strip()
        self.hint = hint
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """Stable kebab-case name of the error."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[FedbusError], message: str, hint: str | None) -> FedbusError:
    return kind(message, hint=hint)


class ConfigError(FedbusError):
    """A setting is missing or wrong."""

    exit_code = 10


class ContractError(FedbusError):
    """A message breaks its schema."""

    exit_code = 20


class RemoteContractError(ContractError):
    """A peer sent a message that breaks its schema."""


class RoundError(FedbusError):
    """A round cannot go on."""

    exit_code = 30


class PlanRefused(RoundError):
    """The plan cannot be followed."""


class UnknownName(RoundError):
    """No plug-in has this name."""


class UnknownRun(RoundError):
    """No run or round has this name."""


class RunAborted(RoundError):
    """The run ended without a model."""


class RunEnded(RoundError):
    """The run is over: nothing can be changed about it any more."""


class UnknownModel(RoundError):
    """The registry has no such model."""


class ModelRefused(RoundError):
    """The model cannot be imported."""


class CodecError(FedbusError):
    """Bytes cannot be decoded."""

    exit_code = 40


class ChunkRefused(CodecError):
    """A chunk does not keep to its header, its grid or its bounds."""


class DigestMismatch(CodecError):
    """Bytes are not those that the manifest names."""


class BusError(FedbusError):
    """The broker did not do what was asked."""

    exit_code = 50


class BusUnavailable(BusError):
    """The broker cannot be reached."""

    retryable = True


class AuthRefused(BusError):
    """The broker refuses this credential."""


class TlsRefused(BusError):
    """The broker does not prove who it is."""


class NotAcked(BusError):
    """The broker did not confirm a write in time."""

    retryable = True


class StreamFull(BusError):
    """The stream is full."""

    retryable = True


class StreamMissing(BusError):
    """The stream or message does not exist."""


class PayloadTooLarge(BusError):
    """A message and its headers exceed the broker's max_payload."""


class ServerTooOld(BusError):
    """The NATS server lacks what fedbus needs."""


class EnrolmentError(FedbusError):
    """A worker cannot be admitted or is not known."""

    exit_code = 60


class InviteRefused(EnrolmentError):
    """The invitation is wrong, expired, used up or revoked."""


class UnknownInvite(EnrolmentError):
    """No invitation has this id."""


class NameTaken(EnrolmentError):
    """Another worker has this name."""


class UnknownWorker(EnrolmentError):
    """No worker has this name."""


class TaskError(FedbusError):
    """The training code failed."""

    exit_code = 70


class TaskMissing(TaskError):
    """The task is not installed on this host."""


class TaskFailed(TaskError):
    """The task raised an error."""


class ChildDied(TaskError):
    """The trainer process died."""


def by_code(code: str, message: str, hint: str | None = None) -> FedbusError:
    """The error of that code, as another process reported it; a plain FedbusError for an unknown code."""
    kind = _family(FedbusError).get(code, FedbusError)
    while kind.__init__ is not FedbusError.__init__:
        kind = kind.__mro__[1]  # it is made from more than a message: its family says enough
    return kind(message, hint=hint)


def _family(root: type[FedbusError]) -> dict[str, type[FedbusError]]:
    found = {root.__new__(root).code: root}
    for child in root.__subclasses__():
        found.update(_family(child))
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that comes closest to a misspelt one, if any is close."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


MOST_ERRORS = 5


def describe(error: ValidationError, known: Iterable[str] = ()) -> str:
    """One line for a failed validation: the field, the reason, and the nearest known key.

    Args:
        error: what pydantic raised.
        known: keys to suggest from where one is unknown.
    """
    lines = []
    # A hostile message can be wrong in a million places; the first few say enough.
    for item in error.errors(include_input=False)[:MOST_ERRORS]:
        field = ".".join(str(part) for part in item["loc"]) or "message"
        if item["type"] == "extra_forbidden":
            close = nearest(str(item["loc"][-1]), known)
            lines.append(f"{field}: unknown key" + (f"; did you mean {close!r}?" if close else ""))
        else:
            lines.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(lines))
