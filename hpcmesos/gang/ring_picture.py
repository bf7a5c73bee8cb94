"""A ring as SVG text: ranks on a circle, links coloured by bandwidth. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from hpcmesos.gang.ring_report import Rank, Report

_SPACING = 90.0  # at least so much of the circle for each rank
_MARGIN = 130.0  # for the names around the circle
_DOT = 7
_UNKNOWN = "#999999"


def colour(bandwidth: float | None, slowest: float, fastest: float) -> str:
    """From red for the slowest link to green for the fastest, by the logarithm; grey for one not measured."""
    if not bandwidth or not slowest:
        return _UNKNOWN
    share = math.log(bandwidth / slowest) / math.log(fastest / slowest) if fastest > slowest else 1.0
    return f"hsl({round(120 * min(1.0, max(0.0, share)))},80%,40%)"


def draw(report: Report) -> str:
    """The picture; a broken link is dashed."""
    ranks = report.ranks
    radius = max(120.0, _SPACING * len(ranks) / (2 * math.pi))
    size = 2 * (radius + _MARGIN)
    measured = [rank.bandwidth for rank in ranks if rank.bandwidth]
    span = (min(measured), max(measured)) if measured else (0.0, 0.0)
    places = [_place(number, len(ranks), radius, size / 2) for number in range(len(ranks))]
    links = [_link(report, rank, places, span) for rank in ranks] if len(ranks) > 1 else []
    marks = [_mark(report, rank, places[rank.rank], size / 2) for rank in ranks]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size:.0f} {size + 30:.0f}" '
        f'font-family="sans-serif" font-size="12" text-anchor="middle">'
    )
    return "\n".join(
        [
            head,
            f"<title>{escape(report.message)}</title>",
            f'<rect width="{size:.0f}" height="{size + 30:.0f}" fill="white"/>',
            *links,
            *marks,
            _legend(span, size),
            "</svg>\n",
        ]
    )


def _place(number: int, count: int, radius: float, middle: float) -> tuple[float, float]:
    """Rank 0 on top, the others clockwise."""
    angle = 2 * math.pi * number / count - math.pi / 2
    return middle + radius * math.cos(angle), middle + radius * math.sin(angle)


def _link(
    report: Report, rank: Rank, places: Sequence[tuple[float, float]], span: tuple[float, float]
) -> str:
    """Curved outwards a little, so that the two links between two ranks are two."""
    right = (rank.rank + 1) % len(places)
    (x1, y1), (x2, y2) = places[rank.rank], places[right]
    bend = 0.12
    x, y = (x1 + x2) / 2 + bend * (y2 - y1), (y1 + y2) / 2 - bend * (x2 - x1)
    broken = report.broken == (rank.rank, right)
    style = (
        'stroke="#d00000" stroke-dasharray="6 5"' if broken else f'stroke="{colour(rank.bandwidth, *span)}"'
    )
    figures = "broken" if broken else "not measured"
    if rank.bandwidth is not None and rank.latency is not None:
        figures = f"{rank.bandwidth:.0f} MB/s, {rank.latency:.1f} us"
    words = escape(f"rank {rank.rank} to rank {right}: {figures}")
    return (
        f'<path d="M{x1:.1f},{y1:.1f} Q{x:.1f},{y:.1f} {x2:.1f},{y2:.1f}" fill="none" stroke-width="4" {style}>'
        f"<title>{words}</title></path>"
    )


def _mark(report: Report, rank: Rank, place: tuple[float, float], middle: float) -> str:
    x, y = place
    guilty = not report.closed and rank.host in report.culprits
    label = f"{rank.host}:{rank.rank}"
    above = y < middle
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{"#d00000" if guilty else "#333333"}">'
        f"<title>{escape(str(rank))}</title></circle>"
        f'<text x="{x:.1f}" y="{y + (-14 if above else 22):.1f}">{escape(label)}</text>'
    )


def _legend(span: tuple[float, float], size: float) -> str:
    if not span[0]:
        return ""
    ends = (("slowest", span[0], size * 0.35), ("fastest", span[1], size * 0.65))
    return "\n".join(
        f'<text x="{x:.1f}" y="{size + 12:.1f}" fill="{colour(value, *span)}">{name} {value:.0f} MB/s</text>'
        for name, value, x in ends
    )
