"""What the C library does with memory that was freed: it is kept for the next chunk, not given back.

glibc gives the end of its heap back as soon as two chunks lie there. The next ones are then made of pages
that the kernel has to find and to zero: ten times the CPU of parsing and copying a received chunk.
"""

from __future__ import annotations

import ctypes

# Numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# What may stay unused at the end of the heap: the chunks that are in flight at a time.
KEPT_BYTES = 12 << 20
# What is larger is no chunk, has pages of its own, and goes back at once.
MAPPED_BYTES = 4 << 20


def keep_freed() -> None:
    """Call it as a process begins. Other C libraries (macOS, musl) are not told anything."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_ARENA_MAX, 1)  # else each thread keeps some of its own
