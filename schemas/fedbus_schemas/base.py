"""What every wire contract shares: frozen, closed to unknown keys, names that are safe in a subject."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

# One NATS subject token: no dots, wildcards, spaces or control characters can reach a subject through it.
TOKEN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


def is_token(text: str) -> bool:
    """Whether a subject's token is a name; a peer may publish tokens that are not."""
    return re.fullmatch(TOKEN_PATTERN, text) is not None


# What was received: large payloads stay in the buffer that took them from the socket.
Payload = bytes | bytearray
Token = Annotated[str, StringConstraints(pattern=TOKEN_PATTERN)]
RunName = Token
WorkerName = Token
NodeName = Token
RoundNumber = Annotated[int, Field(ge=0, le=10_000_000)]
# SHA-256 in lower-case hex: the one digest used for chunks, manifests, plans and models.
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Metrics = Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Finite], Field(max_length=64)]


def one_line(text: str) -> str:
    """Text without what could steer a terminal: peers write it, people read it."""
    return "".join(c if c.isprintable() else " " for c in text)


Reason = Annotated[str, StringConstraints(max_length=2000), AfterValidator(one_line)]


class Wire(BaseModel):
    """A message or a part of one: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
