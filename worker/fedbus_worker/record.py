"""A small file that is written in place, and is either whole or nothing.

A file system with a journal makes who creates, renames or deletes files wait for whoever syncs, such as
a broker beside it: a third of a small round, measured. To write over a file costs a hundredth of that.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from fedbus_schemas.base import Wire
from pydantic import ValidationError

W = TypeVar("W", bound=Wire)

_HEAD = struct.Struct("<BII")  # mark, length of the JSON that follows, its CRC-32
_NOTHING = 0


class Record(Generic[W]):
    """One value, and a mark that changes while the value stays.

    What a power cut or a kill leaves half-written is noticed by its checksum, and counts as nothing.

    Args:
        path: of the file.
        kind: of the value.
    """

    def __init__(self, path: Path, kind: type[W]) -> None:
        self._path = path
        self._kind = kind

    def read(self) -> tuple[W, int] | None:
        """The value and its mark; None where there is none."""
        try:
            data = self._path.read_bytes()
            mark, length, checksum = _HEAD.unpack_from(data)
        except (FileNotFoundError, struct.error):
            return None
        body = memoryview(data)[_HEAD.size : _HEAD.size + length]
        if mark == _NOTHING or len(body) != length or zlib.crc32(body) != checksum:
            return None
        try:
            return self._kind.model_validate_json(bytes(body)), mark
        except ValidationError:
            return None

    def write(self, value: W, mark: int) -> None:
        """Replace the value.

        Args:
            value: what to keep.
            mark: 1 to 255.

        Raises:
            OSError: the disk is full; then there is no value.
        """
        body = value.model_dump_json().encode()
        self._put(_HEAD.pack(mark, len(body), zlib.crc32(body)) + body, os.O_CREAT)

    def mark(self, mark: int) -> None:
        """Change the mark of the value that is there.

        Raises:
            OSError: the file cannot be written.
        """
        self._put(bytes([mark]))

    def clear(self) -> None:
        """Forget the value."""
        with suppress(FileNotFoundError):
            self._put(bytes([_NOTHING]))

    def _put(self, data: bytes, flags: int = 0) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
        try:
            written = os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)
        if written < len(data):
            raise OSError(f"{self._path.name}: {written} of {len(data)} bytes were written")
