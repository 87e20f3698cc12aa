"""The memory benchmark's judgement, table and graph."""

from __future__ import annotations

from xml.etree import ElementTree

from memory import draw, is_growing, quarters, render

FLAT = [50.0, 58.0, *[60.0] * 20]
LEAK = [50.0 + i for i in range(40)]


def test_growth_is_what_the_last_quarter_has_over_the_second() -> None:
    assert quarters([1.0, 2.0, 3.0, 4.0]) == (2.0, 4.0)
    assert not is_growing(FLAT)
    assert is_growing(LEAK)
    assert not is_growing([10.0] * 10 + [17.0] * 10), "a small process may settle"
    assert not is_growing([300.0] * 10 + [325.0] * 10), "a large one, too"


def test_the_table_names_each_kind() -> None:
    text = render({"broker": LEAK, "agent": FLAT})
    assert "| broker | 64.5 | 84.5 | 89.0 |" in text
    assert "| agent |" in text


def test_the_graph_has_a_line_for_each_kind() -> None:
    root = ElementTree.fromstring(draw({"broker": LEAK, "agent": FLAT}, 200))
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("polyline") == 2
    labels = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"broker", "agent", "0", "200", "MiB", "rounds"} <= set(labels)
