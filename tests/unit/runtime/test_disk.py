"""What is said of a disk that others fill: each thing once, and nothing again and again at a threshold."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.runtime.broker import Broker
from fedbus.runtime.disk import GIB, LEAST, DiskNews, DiskWatch
from hypothesis import given
from hypothesis import strategies as st

TOTAL = 100 * GIB  # 5 GiB are the reserve, and less than half of it is low


def told(*free: int) -> list[DiskNews]:
    watch = DiskWatch(Path("/data"), "nothing is stored")
    return [news for news in (watch.judge(TOTAL, each) for each in free) if news]


def test_each_thing_is_said_once_with_its_reason() -> None:
    said = told(50 * GIB, 2 * GIB, 2 * GIB, GIB // 5, GIB // 5, GIB, 50 * GIB, 50 * GIB)
    assert [(news.code, news.reason) for news in said] == [
        ("disk-low", "2.00 of 100.0 GiB are free in /data; below 0.25 GiB nothing is stored"),
        ("disk-full", "0.20 of 100.0 GiB are free in /data: nothing is stored, until there is more"),
        ("disk-low", "1.00 of 100.0 GiB are free in /data: that is enough to go on, but little"),
        ("disk-room", "50.00 of 100.0 GiB are free in /data again"),
    ]


def test_a_disk_that_fills_at_once_and_one_that_is_emptied_at_once() -> None:
    assert [news.code for news in told(0, 50 * GIB)] == ["disk-full", "disk-room"]


@pytest.mark.parametrize(("threshold", "codes"), [(LEAST, ["disk-full"]), (5 * GIB // 2, ["disk-low"])])
def test_a_disk_at_a_threshold_is_told_of_once(threshold: int, codes: list[str]) -> None:
    swinging = [threshold - 1, threshold + 1] * 20
    assert [news.code for news in told(*swinging)] == codes


@given(st.integers(0, 4 * GIB), st.integers(0, TOTAL))
def test_it_is_full_below_the_least_and_never_with_twice_that(total: int, free: int) -> None:
    watch = DiskWatch(Path("/data"), "")
    for _ in range(2):
        watch.judge(max(total, free), free)
        assert watch.full == (free < LEAST) or LEAST <= free < 2 * LEAST


def test_a_disk_that_cannot_be_looked_at_is_told_of_once(tmp_path: Path) -> None:
    watch = DiskWatch(tmp_path / "mounted", "")
    for _ in range(2):
        told = [watch.look() for _ in range(3)]
        assert told[0] is not None
        assert told[0].code == "disk-unknown"
        assert "No such file or directory" in told[0].reason
        assert told[1:] == [None, None]
        (tmp_path / "mounted").mkdir()
        found = watch.look()
        assert found is None or found.code != "disk-unknown"
        (tmp_path / "mounted").rmdir()


@pytest.mark.parametrize(
    ("listen", "exposed"),
    [
        ("127.0.0.1:0", False),
        ("127.8.8.8", False),
        ("localhost:4222", False),
        ("[::1]:4222", False),
        ("0.0.0.0:4222", True),
        ("[::]:4222", True),
        ("10.0.0.7", True),
        ("hub.example.org:4222", True),
    ],
)
def test_who_can_reach_the_broker(tmp_path: Path, listen: str, exposed: bool) -> None:
    assert Broker(tmp_path, listen=listen).exposed is exposed
