"""An event loop in a thread of its own, so that plain code can call asynchronous code.

It works where a loop runs already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

R = TypeVar("R")
_END = object()


class LoopThread:
    """Runs coroutines for callers that are not asynchronous."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._failed: Future[Any] = Future()  # has the error of something that was left running
        # It must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="fedbus", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether `stop` was not called yet."""
        return self._thread.is_alive()

    def call(self, work: Coroutine[Any, Any, R], timeout_s: float | None = None) -> R:
        """Run a coroutine to its end; Ctrl-C cancels it.

        Raises:
            Exception: that of the coroutine, or, once, that of something left running which failed.
            TimeoutError: it takes longer than `timeout_s`.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            wait([future, self._failed], timeout_s, FIRST_COMPLETED)
            if self._failed.done():
                failed, self._failed = self._failed, Future()
                failed.result()
            return future.result(0)
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Start a coroutine and leave it running; if it fails, the next call or the present one says so."""

        def note(ended: Future[object]) -> None:
            if not ended.cancelled() and (error := ended.exception()) and not self._failed.done():
                self._failed.set_exception(error)

        asyncio.run_coroutine_threadsafe(work, self._loop).add_done_callback(note)

    def iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        """What an asynchronous iterator yields; it is closed when the caller stops early."""

        async def step() -> Any:
            return await anext(items, _END)

        async def close() -> None:
            if (aclose := getattr(items, "aclose", None)) is not None:
                await aclose()

        try:
            while (item := self.call(step())) is not _END:
                yield item
        finally:
            if self.running:
                self.call(close(), timeout_s=10.0)

    def stop(self) -> None:
        """Cancel what still runs, and end the thread."""
        if not self.running:
            return
        self._failed = Future()  # whoever closes was told already
        try:
            self.call(_cancel_others(), timeout_s=10.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=5.0) if others else None
