"""Memory of chunks is used again, and that of models is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
from pathlib import Path
from fedbus.runtime.allocator import keep_freed

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    keep_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    chunks = [bytearray(1 << 20) for _ in range(8)]
    del chunks
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident()
models = [bytearray(50 << 20) for _ in range(2)]
del models
print(faults, resident() - held)
"""


def measured(how: str) -> tuple[int, int]:
    """Page faults of 400 chunks of 1 MiB, 8 at a time, and bytes that two models leave behind."""
    told = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, check=True, text=True)
    faults, left = told.stdout.split()
    return int(faults), int(left)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back at once")
def test_chunks_use_the_same_memory_again_and_models_leave_none() -> None:
    faults, left = measured("keep")
    assert faults < measured("leave")[0] / 10
    assert left < 1 << 20
