"""Pictures as SVG: who ran where and when, how much was in use, how something grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from hpcmesos.gang.simulate import Run
from hpcmesos.gang.snapshot import NodeView

WIDTH, HEIGHT, MARGIN = 1000, 400, 60
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MOST_BARS = 20_000
_STEPS = 500


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) under one name."""

    name: str
    points: tuple[tuple[float, float], ...]


def gantt(runs: Sequence[Run], nodes: Sequence[NodeView]) -> str:
    """A row a node, a bar a job that held some of it. Of preempted jobs the bar spans first start to end."""
    rows = {node.name: row for row, node in enumerate(nodes)}
    begin, end = _span(runs)
    high = max(2.0, min(18.0, 2000 / max(1, len(rows))))
    scale = (WIDTH - 2 * MARGIN) / (end - begin)
    parts = []
    shown = [(run, name) for run in runs for name in run.nodes if name in rows][:_MOST_BARS]
    for run, name in shown:
        x, y = MARGIN + (run.started_at - begin) * scale, MARGIN + rows[name] * high
        width = max(0.5, (run.ended_at - run.started_at) * scale)
        size = run.job.request.gpus or run.job.request.cpus
        title = f"<title>{escape(str(run.job.id))} {size}</title>"
        colour = _COLOURS[run.job.id.seq % len(_COLOURS)]
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{high * 0.9:.1f}" fill="{colour}" '
            f'fill-opacity="0.6">{title}</rect>'
        )
    bottom = MARGIN + len(rows) * high
    parts += [
        _text(MARGIN - 5, MARGIN + (row + 0.7) * high, str(name), "end")
        for name, row in rows.items()
        if high > 8
    ]
    parts += _time_axis(begin, end, bottom)
    note = "" if len(shown) < _MOST_BARS else f" (the first {_MOST_BARS} shares)"
    return _svg(int(bottom + MARGIN), f"Jobs on nodes{note}", parts)


def utilisation(runs: Sequence[Run], capacity: int, what: str) -> str:
    """What was held over time, out of ``capacity`` (GPUs or CPUs)."""
    begin, end = _span(runs)
    step = (end - begin) / _STEPS
    held = [0.0] * (_STEPS + 1)
    for run in runs:
        size = run.job.request.gpus if what == "GPUs" else run.job.request.cpus
        first, last = (run.started_at - begin) / step, (run.ended_at - begin) / step
        for at in range(int(first), min(int(last), _STEPS) + 1):
            held[at] += size * max(0.0, min(last, at + 1) - max(first, at))
    high = HEIGHT - 2 * MARGIN
    points = " ".join(
        f"{MARGIN + at * (WIDTH - 2 * MARGIN) / _STEPS:.1f},{HEIGHT - MARGIN - min(1.0, value / capacity) * high:.1f}"
        for at, value in enumerate(held)
    )
    area = f'<polygon points="{MARGIN},{HEIGHT - MARGIN} {points} {WIDTH - MARGIN},{HEIGHT - MARGIN}" fill="#4477aa"/>'
    marks = [
        _text(MARGIN - 5, HEIGHT - MARGIN - part * high / 4 + 4, f"{capacity * part / 4:g}", "end")
        for part in range(5)
    ]
    return _svg(
        HEIGHT, f"{what} in use, of {capacity}", [area, *marks, *_time_axis(begin, end, HEIGHT - MARGIN)]
    )


def stacked(values: Mapping[tuple[str, str], float], title: str) -> str:
    """Columns of stacked parts. ``values``: by column and part; the largest parts get colours, the rest are one."""
    columns = sorted({column for column, _ in values})
    sizes: dict[str, float] = {}
    for (_, part), value in values.items():
        sizes[part] = sizes.get(part, 0.0) + value
    parts = sorted(sizes, key=lambda part: (-sizes[part], part))
    named, rest = parts[: len(_COLOURS) - 1], parts[len(_COLOURS) - 1 :]
    highest = max((sum(v for (c, _), v in values.items() if c == column) for column in columns), default=0.0)
    scale = (HEIGHT - 2 * MARGIN) / (highest or 1.0)
    wide = (WIDTH - 3 * MARGIN - 150) / max(1, len(columns))
    shapes = []
    for place, column in enumerate(columns):
        x, y = MARGIN + place * wide, float(HEIGHT - MARGIN)
        heights = [values.get((column, part), 0.0) for part in named]
        heights.append(sum(values.get((column, part), 0.0) for part in rest))
        for number, value in enumerate(heights):
            y -= value * scale
            name = named[number] if number < len(named) else "others"
            shapes.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide * 0.8:.1f}" height="{value * scale:.1f}" '
                f'fill="{_COLOURS[number]}"><title>{escape(f"{column} {name}: {value:.1f}")}</title></rect>'
            )
        if place % ceil(len(columns) / 12) == 0:
            shapes.append(_text(x + wide * 0.4, HEIGHT - MARGIN + 16, column, "middle"))
    shapes += [
        _text(
            MARGIN - 5, HEIGHT - MARGIN - highest * part / 4 * scale + 4, f"{highest * part / 4:.4g}", "end"
        )
        for part in range(5)
    ]
    legend = [*named, "others"] if rest else named
    shapes += [
        _text(WIDTH - MARGIN - 150, MARGIN + 18 * number, name, "start", _COLOURS[number])
        for number, name in enumerate(legend)
    ]
    return _svg(HEIGHT, title, shapes)


def log_log(lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """Growth: a straight line of slope 1 is proportional."""
    points = [point for line in lines for point in line.points]
    left, right = _decades([x for x, _ in points])
    low, high = _decades([y for _, y in points])
    tall = HEIGHT + 100

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + (log10(x) - left) / (right - left) * (WIDTH - 2 * MARGIN),
            tall - MARGIN - (log10(y) - low) / (high - low) * (tall - 2 * MARGIN),
        )

    parts = [
        _decade(place(10.0**at, 10.0**low)[0], None, f"{10**at:,}", tall) for at in range(left, right + 1)
    ]
    parts += [
        _decade(None, place(10.0**left, 10.0**at)[1], f"{10.0**at:g}", tall) for at in range(low, high + 1)
    ]
    for number, line in enumerate(lines):
        colour = _COLOURS[number]
        placed = [place(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in placed]
        parts.append(_text(MARGIN + 10, MARGIN + 18 * (number + 1), line.name, "start", colour))
    parts.append(_text(WIDTH / 2, tall - 12, x_name, "middle"))
    return _svg(tall, y_name, parts)


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [log10(value) for value in values if value > 0]
    low, high = floor(min(logs)), ceil(max(logs))
    return low, max(high, low + 1)


def _decade(x: float | None, y: float | None, name: str, tall: int) -> str:
    if x is not None:
        line = f'<line x1="{x:.1f}" y1="{MARGIN}" x2="{x:.1f}" y2="{tall - MARGIN}" stroke="#ddd"/>'
        return line + _text(x, tall - MARGIN + 16, name, "middle")
    assert y is not None
    line = f'<line x1="{MARGIN}" y1="{y:.1f}" x2="{WIDTH - MARGIN}" y2="{y:.1f}" stroke="#ddd"/>'
    return line + _text(MARGIN - 5, y + 4, name, "end")


def _span(runs: Sequence[Run]) -> tuple[float, float]:
    begin = min((run.job.submitted_at for run in runs), default=0.0)
    return begin, max((run.ended_at for run in runs), default=begin + 1.0)


def _time_axis(begin: float, end: float, y: float) -> list[str]:
    """Five marks, in hours or days since the first submission."""
    unit, name = (86400.0, "d") if end - begin > 3 * 86400 else (3600.0, "h")
    marks = []
    for part in range(6):
        x = MARGIN + part * (WIDTH - 2 * MARGIN) / 5
        marks.append(_text(x, y + 16, f"{(end - begin) * part / 5 / unit:.1f} {name}", "middle"))
    return marks


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{MARGIN}" y="30" font-size="16">{escape(title)}</text>'
    )
    return head + "\n".join(parts) + "</svg>\n"
