"""The ring as a picture."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.gang import ring_picture, ring_report
from hpcmesos.gang.ring_report import DONE, INIT, Rank

SVG = "{http://www.w3.org/2000/svg}"


@given(st.lists(st.one_of(st.none(), st.floats(0.001, 1e6)), min_size=1, max_size=40))
def test_any_ring_is_drawn_within_its_frame(bandwidths: list[float | None]) -> None:
    ranks = [Rank(n, f"<node{n}>", (), DONE, None, 1.0, speed) for n, speed in enumerate(bandwidths)]
    root = ElementTree.fromstring(ring_picture.draw(ring_report.closed(ranks)))
    assert len(root.findall(f"{SVG}path")) == (len(ranks) if len(ranks) > 1 else 0)
    size = float(root.attrib["viewBox"].split()[2])
    for circle in root.findall(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < size and 0 < float(circle.attrib["cy"]) < size


def test_slow_is_red_fast_is_green() -> None:
    assert ring_picture.colour(10, 10, 1000) == "hsl(0,80%,40%)"
    assert ring_picture.colour(100, 10, 1000) == "hsl(60,80%,40%)"
    assert ring_picture.colour(1000, 10, 1000) == "hsl(120,80%,40%)"
    assert ring_picture.colour(50, 50, 50) == "hsl(120,80%,40%)"
    assert ring_picture.colour(None, 10, 1000) == "#999999"


def test_a_broken_link_is_dashed_and_its_host_is_red() -> None:
    ranks = [Rank(n, f"node{n}", (), INIT, alive=True) for n in range(3)]
    ranks[1] = replace(ranks[1], stage=None, alive=False)
    root = ElementTree.fromstring(ring_picture.draw(ring_report.late(ranks, 20.9)))
    dashed = ["stroke-dasharray" in path.attrib for path in root.findall(f"{SVG}path")]
    assert dashed == [True, False, False]
    assert [circle.attrib["fill"] for circle in root.findall(f"{SVG}circle")] == [
        "#333333",
        "#d00000",
        "#333333",
    ]
