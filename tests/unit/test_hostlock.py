"""How long a process waits for another one that downloads."""

from __future__ import annotations

from pathlib import Path

from fedbus.bus.hostlock import Patience


def test_patience_ends_where_a_file_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "part"
    patience = Patience(file, 10.0)
    assert not patience.is_over(0.0, excused=False)
    assert patience.is_over(10.0, excused=False), "there is no file at all"
    file.write_bytes(b"chunk")
    assert not patience.is_over(11.0, excused=False), "it has begun"
    assert not patience.is_over(20.0, excused=False)
    file.write_bytes(b"chunk and chunk")
    assert not patience.is_over(21.0, excused=False), "it goes on"
    assert not patience.is_over(32.0, excused=True), "the broker is away"
    assert not patience.is_over(41.0, excused=False)
    assert patience.is_over(42.0, excused=False)
