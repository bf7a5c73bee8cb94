"""A bar chart as SVG, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _LABEL, _ROW = 760, 220, 28
_OURS, _THEIRS = "#2a6fb0", "#9aa5b1"


def bars(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """One bar a row; ours are blue."""
    largest = max((value for _, value in rows), default=1.0)
    height = 60 + _ROW * len(rows)
    box = f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="28" font-size="16">{escape(title)}</text>',
    ]
    for place, (name, value) in enumerate(rows):
        y = 48 + place * _ROW
        length = max(1.0, (_WIDTH - _LABEL - 80) * value / largest)
        colour = _OURS if name.startswith("hpcmesos") else _THEIRS
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_ROW - 8}" fill="{colour}"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{y + 14}">{value:.1f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
