"""docs/reasons.md and the code have the same codes, and each has a sentence and something to do."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from fedbus.rounds import reasons
from support.docs import ROOT

SECTIONS = {
    "A run waits": reasons.WaitCode,
    "A round closes": reasons.CloseCode,
    "A run is aborted": reasons.AbortCode,
    "A worker is left out": reasons.ExclusionCode,
    "A member is lost": reasons.LossCode,
    "An update does not count": reasons.RefusalCode,
    "A model has no score": reasons.UnscoredCode,
    "A worker and a run": reasons.StandingCode,
    "What would have made a round faster": reasons.HintCode,
    "A round is made again": reasons.ReplayCode,
}
PAGE = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/reasons.md").read_text(), re.M | re.S))
SOURCES = "\n".join(
    path.read_text()
    for root in ("core", "services")
    for path in (ROOT / root).rglob("*.py")
    if path.name != "reasons.py"
)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_the_codes_that_the_code_has(section: str) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \| (.+) \|$", PAGE[section], re.M)
    assert sorted(code for code, _, _ in rows) == sorted(get_args(SECTIONS[section]))
    for code, sentence, advice in rows:
        assert min(len(sentence), len(advice)) >= 7, code


def test_no_section_is_forgotten() -> None:
    declared = [value for name, value in vars(reasons).items() if name.endswith("Code")]
    assert len(declared) == len(SECTIONS)
    assert all(kind in declared for kind in SECTIONS.values())
    assert set(PAGE) == set(SECTIONS)


@pytest.mark.parametrize("code", sorted({code for kind in SECTIONS.values() for code in get_args(kind)}))
def test_every_code_is_said_somewhere(code: str) -> None:
    """mypy sees to the other half: that nothing else is said."""
    assert f'"{code}"' in SOURCES
