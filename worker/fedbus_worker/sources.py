"""What a trainer child has read: the task's code and its data folders, and whether they have changed since.

Valid for Python 3.9; standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Of a larger data folder, the first in the order of the names: a look must stay quick.
MOST_FILES = 1000

_Stamp = tuple[int, ...]


class Sources:
    """Stamps (newest time, sizes) of files and folders, taken when they are first read."""

    def __init__(self) -> None:
        self._code: dict[str, _Stamp] = {}
        self._data: dict[str, _Stamp] = {}
        self._broken: str | None = None

    def note_broken(self, task: str) -> None:
        """A task could not be loaded: whatever it imported is not to be kept."""
        self._broken = task

    def note_code(self, spec: str) -> None:
        """Stamp a task's module, and those beside and below it that are imported by now."""
        origin = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
        if origin is None:
            return
        home = Path(origin).absolute().parent
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if not isinstance(path, str):
                continue
            inside = Path(path).absolute().parts[len(home.parts) :]
            # The folder of a user's task may hold a whole environment, which is nobody's to edit.
            if home in Path(path).absolute().parents and "site-packages" not in inside:
                self._code.setdefault(path, _stamp([Path(path)]))

    def note_data(self, folder: str | None) -> None:
        """Stamp a data folder before it is read for the first time."""
        if folder is not None and folder not in self._data:
            self._data[folder] = _stamp(_files(folder))

    def changed(self) -> str | None:
        """What is not as it was read, or None."""
        if self._broken is not None:
            return self._broken
        for path, stamp in self._code.items():
            if _stamp([Path(path)]) != stamp:
                return path
        for folder, stamp in self._data.items():
            if _stamp(_files(folder)) != stamp:
                return folder
        return None


def _files(folder: str) -> list[Path]:
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(where, name) for name in sorted(names)]
        if len(found) >= MOST_FILES:
            break
    return found[:MOST_FILES]


def _stamp(paths: list[Path]) -> _Stamp:
    """Newest time, then sizes; a file that is gone counts as one of no size."""
    newest, sizes = 0, []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            sizes.append(-1)
            continue
        newest = max(newest, found.st_mtime_ns)
        sizes.append(found.st_size)
    return (newest, *sizes)
