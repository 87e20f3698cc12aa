"""The trainer child: loads a task, trains, and talks to its agent alone.

    python -m fedbus_worker.child [--threads N]

One JSON request per line on stdin, one at a time; JSON lines on stdout:

    {"ready": {"python": "3.11.7", "pid": 4242}}             once, at start
    {"do": "init", task, params, seed, out}                  writes a new model to `out`
    {"do": "train", task, params, seed, round, site, table, model, out}
                                                             writes trained minus given weights to `out`
    {"do": "evaluate", task, params, site, table, model}
    {"do": "load", task}                                     only looks whether there is such a task
    {"do": "changed"}                                        whether code or data differ from what was read
    {"progress": 0.25}                                       at most 5 a second
    {"done": {"table": […]}}                                 of init
    {"done": {"num_examples": 3, "metrics": {…}}}            of train and evaluate
    {"done": {"problem": "task 'x:Y': …"}}                   of load; null where there is none
    {"done": {"changed": "/home/you/iris.py"}}               of changed; null where nothing has
    {"failed": {"error": "ValueError: …", "traceback": "…"}} the child lives on

Out of memory it does not live on: what is left in memory is of no use, so it ends with the error as its last
words on stderr, and the next request goes to a fresh child.

Vectors are flat float32 files. Valid for Python 3.9; standard library and numpy only. It holds
no credential, and dies with its agent: the end of stdin ends it, in the middle of training too.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import platform
import select
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional

from fedbus_worker.sources import Sources

if TYPE_CHECKING:
    import numpy as np
    from fedbus.tasks.resident import Resident
    from numpy.typing import NDArray

PROGRESS_S = 0.2
OUT_OF_MEMORY = 12  # the exit code; ENOMEM's number
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Child:
    """Answers requests; keeps the last task resident."""

    def __init__(self, replies: int, threads: int) -> None:
        self._replies = replies
        self._threads = threads
        self._key = ""
        self._resident: Optional[Resident] = None
        self._told = float("-inf")
        self._sources = Sources()

    def answer(self, line: bytes) -> None:
        """Follow one request; what the task raises is told, and the child lives on, unless memory ran out."""
        try:
            request = json.loads(line)
            do = {
                "init": self._init,
                "train": self._train,
                "evaluate": self._evaluate,
                "load": self._load,
                "changed": self._changed,
            }[request["do"]]
            self.tell({"done": do(request)})
        except Exception as error:
            if _is_out_of_memory(error):
                # torch's is no MemoryError, and a MemoryError of Python's own says nothing.
                traceback.print_exc()
                text = "{}: {}".format(type(error).__name__, error)
                print("out of memory: " + text[:300].rstrip(": "), file=sys.stderr, flush=True)
                os._exit(OUT_OF_MEMORY)  # no thread of the task may keep us
            text = "{}: {}".format(type(error).__name__, error)
            self.tell({"failed": {"error": text[:1500], "traceback": traceback.format_exc()[-20_000:]}})

    def tell(self, reply: Dict[str, Any]) -> None:
        """Write one reply."""
        data = json.dumps(reply, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(self._replies, data) :]

    def _init(self, request: Dict[str, Any]) -> Dict[str, Any]:
        from fedbus.tasks import vector

        table, arrays = self._task(request).init(request["seed"])
        vector.flatten(arrays, table, _new_vector(request["out"], vector.size(table)))
        return {"table": table}

    def _train(self, request: Dict[str, Any]) -> Dict[str, Any]:
        from fedbus.tasks.resident import site_from

        weights = _read_vector(request["model"])
        self._told = float("-inf")
        site = site_from(request["site"])
        self._sources.note_data(site.data)
        trained = self._task(request).train(
            site,
            weights,
            request["table"],
            request["seed"],
            request["round"],
            self._progress,
            lambda: _new_vector(request["out"], len(weights)),
        )
        return {"num_examples": trained.num_examples, "metrics": trained.metrics}

    def _evaluate(self, request: Dict[str, Any]) -> Dict[str, Any]:
        from fedbus.tasks.resident import site_from

        weights = _read_vector(request["model"])
        site = site_from(request["site"])
        self._sources.note_data(site.data)
        scored = self._task(request).evaluate(site, weights, request["table"])
        return {"num_examples": scored.num_examples, "metrics": scored.metrics}

    def _load(self, request: Dict[str, Any]) -> Dict[str, Any]:
        from fedbus.tasks.load import load_class

        try:
            load_class(request["task"])
        except (LookupError, ImportError) as error:
            return {"problem": str(error.args[0] if error.args else error)}
        return {"problem": None}

    def _changed(self, request: Dict[str, Any]) -> Dict[str, Any]:
        return {"changed": self._sources.changed()}

    def _task(self, request: Dict[str, Any]) -> Resident:
        """The resident task; another task, or other parameters, take its place."""
        from fedbus.tasks.resident import Resident

        key = json.dumps([request["task"], request["params"]], sort_keys=True)
        if self._resident is None or key != self._key:
            self._resident = None  # let go of its memory first
            try:
                self._resident = Resident(request["task"], request["params"])
            except BaseException:
                self._sources.note_broken(request["task"])
                raise
            self._sources.note_code(request["task"])
            self._key = key
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._threads)
        return self._resident

    def _progress(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_S:
            self._told = now
            self.tell({"progress": min(1.0, max(0.0, float(fraction)))})


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _read_vector(path: str) -> NDArray[np.float32]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _map(file, os.fstat(file).st_size, mmap.ACCESS_READ)
    finally:
        os.close(file)


def _new_vector(path: str, size: int) -> NDArray[np.float32]:
    """The vector of a file, in memory shared with the agent; its last one's file is used again.

    Its space is reserved: on a full disk, writing to unreserved shared memory kills the process
    (SIGBUS), where this is an error that says so.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(file).st_size != 4 * size:
            os.ftruncate(file, 0)
            _reserve(file, 4 * size, path)
        return _map(file, 4 * size, mmap.ACCESS_WRITE)
    finally:
        os.close(file)


def _reserve(file: int, size: int, path: str) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                Path(path).unlink()
                raise
    os.ftruncate(file, size)


def _map(file: int, size: int, access: int) -> NDArray[np.float32]:
    # Not numpy's memmap, which takes as long as a small model's whole training step.
    import numpy as np

    return np.frombuffer(mmap.mmap(file, size, access=access), np.float32)


def _end_with(requests: int) -> None:
    """Wait for the end of stdin: then the agent is gone, and so are we, whatever the task is at."""
    ends = select.poll()
    ends.register(requests, 0)  # nothing but its end: requests do not wake this thread
    ends.poll()
    os._exit(0)


def _lines(requests: int) -> Iterator[bytes]:
    """The lines of stdin."""
    rest = b""
    while data := os.read(requests, 1 << 20):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(
        prog="fedbus_worker.child", description="The trainer child of fedbus-worker."
    )
    parser.add_argument("--threads", type=int, default=1, help="threads that the task's numerics may use")
    threads = parser.parse_args().threads
    for name in _THREAD_VARIABLES:  # read when numpy and torch are imported, which is later
        os.environ[name] = str(threads)
    # The protocol has the pipes to itself: a task that prints writes to stderr, one that reads finds nothing.
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper here
    threading.Thread(target=_end_with, args=(requests,), daemon=True).start()
    child = Child(replies, threads)
    child.tell({"ready": {"python": platform.python_version(), "pid": os.getpid()}})
    for line in _lines(requests):
        child.answer(line)
    os._exit(0)  # no thread of the task may keep us


if __name__ == "__main__":
    main()
