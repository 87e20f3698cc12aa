"""A log that is read from its end, and put aside while a process writes to it."""

from __future__ import annotations

from pathlib import Path

from fedbus.runtime.logfile import MOST_LOG_BYTES, is_long, put_aside, tail


def test_the_end_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"0123456789")
    assert [tail(path, size) for size in (0, 3, 10, 99)] == [b"", b"789", b"0123456789", b"0123456789"]


def test_a_writer_goes_on_in_the_emptied_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * MOST_LOG_BYTES)
        assert not is_long(path)
        writer.write(b"end\n")
        assert is_long(path)
        put_aside(path)
        writer.write(b"more\n")
    assert path.read_bytes() == b"more\n"
    old = path.with_suffix(".log.old")
    assert old.stat().st_size == MOST_LOG_BYTES
    assert tail(old, 4) == b"end\n"
    assert not is_long(tmp_path / "none.log")


def test_a_log_that_cannot_be_kept_is_emptied_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x")
    path.with_suffix(".log.old").mkdir()
    put_aside(path)
    assert path.stat().st_size == 0
