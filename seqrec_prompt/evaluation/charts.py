"""Charts as inline SVG: they take their colours from the page, scale with it, print, and are read out.

Nothing but shapes and text of the standard library's ElementTree, which escapes what it is given. Every mark carries a
title that a mouse shows. A chart is WIDTH units wide, about a phone's width, so its text keeps its size there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38  # margins of a chart with two axes
LABEL = 32  # letters of a band's label that have room beside its note
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Style:
    """How one recommender looks in every chart: `colour` is a class of the page, `shape` one of SHAPES."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Mark:
    """A value with its interval (or none), drawn in `style`; `label` stands beside it, `title` is shown on it."""

    x: float
    y: float
    style: Style
    title: str
    label: str = ""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Band:
    """One line of `dots`: what it is, a note on it, and its marks (of which y is not used)."""

    label: str
    note: str
    marks: Sequence[Mark]


def legend_mark(style: Style) -> str:
    """Return a mark alone, for a legend or a table."""
    svg = Element(
        "svg", {"class": "key", "viewBox": "-7 -7 14 14", "width": "14", "height": "14", "aria-hidden": "true"}
    )
    _mark(svg, 0, 0, style, 5)
    return _text_of(svg)


def dots(bands: Sequence[Band], description: str, digits: int) -> str:
    """Values with intervals on one axis that begins at 0, a band of rows each."""
    step, gap, head = 11, 12, 16
    highest = max((max(m.x, *(m.interval or ())) for band in bands for m in band.marks), default=0.0)
    ticks = _ticks(0, highest)
    plot = WIDTH - 2 * RIGHT
    heights = [head + step * len(band.marks) + gap for band in bands]
    height = sum(heights) + 22
    svg = _chart(height, description)

    def place(value: float) -> float:
        return RIGHT + value / ticks[-1] * plot

    for value in ticks:
        _line(svg, place(value), 4, place(value), height - 20, "grid")
        _text(svg, place(value), height - 6, f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0", "tick", "middle")
    top = 4.0
    for band, tall in zip(bands, heights, strict=True):
        short = band.label if len(band.label) <= LABEL else band.label[: LABEL - 1] + "…"
        _text(svg, RIGHT, top + 10, short, "label")
        _text(svg, WIDTH - RIGHT, top + 10, band.note, "tick", "end")
        for i, mark in enumerate(band.marks):
            y = top + head + step * (i + 0.5)
            if mark.interval:
                _line(svg, place(mark.interval[0]), y, place(mark.interval[1]), y, f"whisker {mark.style.colour}")
            _mark(svg, place(mark.x), y, mark.style, 4, mark.title)
        top += tall
    return _text_of(svg)


def scatter(marks: Sequence[Mark], curves: Sequence[Sequence[Mark]], x_name: str, y_name: str, description: str) -> str:
    """Marks over two axes; `curves` are joined in the order given by a dashed line."""
    svg = _chart(280, description)
    x_ticks, y_ticks = _around([m.x for m in marks]), _around([m.y for m in marks])
    x, y = _axes(svg, 280, x_ticks, y_ticks, x_name, y_name)
    for curve in curves:
        points = " ".join(f"{x(m.x):.1f},{y(m.y):.1f}" for m in curve)
        SubElement(svg, "polyline", {"points": points, "class": "curve"})
    places = [(x(mark.x), y(mark.y)) for mark in marks]
    taken = [(left - 6, top - 6, left + 6, top + 6) for left, top in places]
    for mark, (left, top) in zip(marks, places, strict=True):
        _mark(svg, left, top, mark.style, 5, mark.title)
        if mark.label:
            label = _free_place(left, top, 6.5 * len(mark.label), taken)
            taken.append(label)
            _text(svg, label[0], label[3] - 2, mark.label, "point")
    return _text_of(svg)


def curve(points: Sequence[tuple[float, float]], style: Style, x_name: str, y_name: str, description: str) -> str:
    """One line over two axes, its points marked where they are few."""
    svg = _chart(220, description)
    x_ticks = _ticks(0, max(x for x, _ in points))
    x, y = _axes(svg, 220, x_ticks, _around([value for _, value in points]), x_name, y_name)
    SubElement(
        svg,
        "polyline",
        {"points": " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points), "class": f"line {style.colour}"},
    )
    for a, b in points if len(points) <= 40 else ():
        _mark(svg, x(a), y(b), style, 3, f"{x_name} {a:g}: {b:.4g}")
    return _text_of(svg)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free_place(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    """Return where beside the mark at (x, y) a label of this width meets the fewest others, inside the chart."""
    boxes = [
        (left, top, left + width, top + 11)
        for top in (y - 13, y + 3, y - 22, y + 12)
        for left in (x + 7, x - 7 - width)
        if left >= LEFT and left + width <= WIDTH - 2
    ]

    def met(box: Box) -> int:
        return sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)

    return min(boxes, key=met, default=(x, y - 13, x + width, y - 2))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`, three to six of them (Heckbert, 1990)."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= span / 4 * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _around(values: Sequence[float]) -> list[float]:
    """Ticks around values, from 0 where all are near it."""
    low, high = min(values), max(values)
    return _ticks(0.0 if 0 <= low < high / 2 else low, high)


def _axes(svg: Element, height: int, xs: list[float], ys: list[float], x_name: str, y_name: str):  # type: ignore[no-untyped-def]
    """Draw both axes; returns the functions from value to place."""

    def x(value: float) -> float:
        return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (height - TOP - BOTTOM - 12)

    for value in xs:
        _line(svg, x(value), y(ys[-1]), x(value), y(ys[0]), "grid")
        _text(svg, x(value), height - BOTTOM + 15, f"{value:.4g}", "tick", "middle")
    for value in ys:
        _line(svg, LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
        _text(svg, LEFT - 6, y(value) + 4, f"{value:.4g}", "tick", "end")
    _text(svg, WIDTH - RIGHT, height - 5, x_name, "axis", "end")
    _text(svg, 2, 11, y_name, "axis")
    return x, y


def _chart(height: float, description: str) -> Element:
    box = f"0 0 {WIDTH} {height:g}"
    return Element("svg", {"class": "chart", "viewBox": box, "role": "img", "aria-label": description})


def _line(svg: Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    SubElement(svg, "line", {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}", "class": kind})


def _text(svg: Element, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind, "text-anchor": anchor}
    SubElement(svg, "text", place).text = text


def _mark(svg: Element, x: float, y: float, style: Style, size: float, title: str = "") -> None:
    r = size
    if style.shape == "circle":
        mark = SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{r:g}"})
    else:
        corners = {
            "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
            "diamond": [(0, -r * 1.3), (r * 1.3, 0), (0, r * 1.3), (-r * 1.3, 0)],
            "triangle": [(0, -r * 1.2), (r * 1.2, r), (-r * 1.2, r)],
        }[style.shape]
        mark = SubElement(svg, "polygon", {"points": " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)})
    mark.set("class", f"mark {style.colour}")
    if title:
        SubElement(mark, "title").text = title


def _text_of(svg: Element) -> str:
    return tostring(svg, encoding="unicode")
