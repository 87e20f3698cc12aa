"""Every code that says why something waits, ends, is left out or does not count.

Each travels with a sentence. docs/reasons.md lists them, and says what to do.
"""

from __future__ import annotations

from typing import Literal

# What a run waits for.
WaitCode = Literal[
    "workers", "roster", "storage", "setback", "updates", "aggregator-behind", "aggregating"
]  # fmt: skip
# Why a round closed, or was aborted.
CloseCode = Literal["target", "deadline", "nobody-left"]
AbortCode = Literal["quorum", "voided", "operator"]
# Why a worker cannot be in a cohort.
ExclusionCode = Literal["leaving", "silent", "task", "codec", "labels", "parts"]
# Why a member is not waited for any more.
LossCode = Literal["failed", "left", "silent", "stalled"]
# Why an update does not count.
RefusalCode = Literal[
    "not-in-cohort", "duplicate", "not-needed", "late",
    "bad-manifest", "wrong-manifest", "wrong-plan", "wrong-base", "wrong-codec", "wrong-table", "wrong-shape",
    "wrong-size", "too-large", "stream-missing", "digest-mismatch", "chunk-refused", "out-of-range",
    "unreadable", "voided",
]  # fmt: skip
# Why a model has no score, and why it has none of a member.
UnscoredCode = Literal["not-scored", "no-score", "failed", "no-examples", "no-metrics", "run-ended"]
# How a worker stands with a run, beside what excludes it.
StandingCode = Literal[
    "cohort", "accepted", "rejected", "voided", "lost", "missed", "late", "not-chosen", "waiting", "eligible",
    "unknown",
]  # fmt: skip
# Whether a round that is made again gives the same model.
ReplayCode = Literal["equal", "different", "not-retained", "no-model"]
# What would have made a round faster.
HintCode = Literal[
    "straggler", "lost", "deadline", "slow-evaluate", "slow-train", "slow-encode", "upload", "download",
    "aggregator",
]  # fmt: skip
