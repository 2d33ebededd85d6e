"""What a matplotlib figure shows, as data: type, title, axes and elements of each of its plots, in the words that the E2B SDK's `charts` module parses.

A figure with one plot is that plot's chart; with several it is a `superchart` of them. What is recognised: lines, scatter, bars, pies, boxes; the rest is
`unknown`, with its title and axes.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from .frames import plain

_UNIT = re.compile(r"[(\[]([^()\[\]]+)[)\]]\s*\Z")
_HIDDEN = "_"
"""matplotlib's own labels, of things that have no place in a legend, begin with it."""
_BOXES = "_torpor_boxes"
Json = dict[str, Any]


def watch_boxes(axes_class: Any) -> None:
    """Has Axes.bxp, through which every box plot goes, remember its statistics: from the lines it draws they could only be guessed."""
    draw = axes_class.bxp

    @functools.wraps(draw)
    def remembering(self: Any, bxpstats: Any, *arguments: Any, **named: Any) -> Any:
        bxpstats = list(bxpstats)
        setattr(self, _BOXES, [*getattr(self, _BOXES, ()), *bxpstats])
        return draw(self, bxpstats, *arguments, **named)

    axes_class.bxp = remembering


def figure_chart(figure: Any) -> Json | None:
    """None for a figure without plots."""
    charts = [axes_chart(axes) for axes in figure.axes if not hasattr(axes, "_colorbar")]
    if not charts:
        return None
    if len(charts) == 1:
        return charts[0]
    title = figure.get_suptitle()
    return {"type": "superchart", "title": title, "elements": charts}


def axes_chart(axes: Any) -> Json:
    """The chart of one plot."""
    if wedges := [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]:
        return {"type": "pie", "title": axes.get_title(), "elements": _slices(axes, wedges)}
    common = _common(axes)
    if stats := getattr(axes, _BOXES, None):
        return common | {"type": "box_and_whisker", "elements": _boxes(axes, stats)}
    if bars := [container for container in axes.containers if type(container).__name__ == "BarContainer"]:
        return common | {"type": "bar", "elements": _bars(axes, bars)}
    if points := [collection for collection in axes.collections if type(collection).__name__ == "PathCollection"]:
        groups = [(collection, *_columns(collection.get_offsets())) for collection in points]
        return common | _scales(axes) | {"type": "scatter", "elements": _series(axes, groups)}
    if axes.lines:
        groups = [(line, line.get_xdata(), line.get_ydata()) for line in axes.lines]
        return common | _scales(axes) | {"type": "line", "elements": _series(axes, groups)}
    return common | {"type": "unknown", "elements": []}


def _columns(offsets: Any) -> tuple[list[Any], list[Any]]:
    return [pair[0] for pair in offsets], [pair[1] for pair in offsets]


def _common(axes: Any) -> Json:
    x, y = axes.get_xlabel(), axes.get_ylabel()
    return {"title": axes.get_title(), "x_label": x or None, "y_label": y or None, "x_unit": _unit(x), "y_unit": _unit(y)}


def _unit(label: str) -> str | None:
    found = _UNIT.search(label)
    return found[1].strip() if found else None


def _kind(axis: Any) -> str:
    """`datetime` or `categorical` where the axis converts, else matplotlib's name of its scale."""
    converter = type(axis.get_converter()).__name__ if hasattr(axis, "get_converter") else type(getattr(axis, "converter", None)).__name__
    if "Category" in converter:
        return "categorical"
    if "Date" in converter or "Datetime" in converter or "Period" in converter:
        return "datetime"
    return str(axis.get_scale())


def _scales(axes: Any) -> Json:
    found: Json = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        found |= {f"{name}_scale": _kind(axis), f"{name}_ticks": _values(axis, axis.get_ticklocs()), f"{name}_tick_labels": labels}
    return found


def _values(axis: Any, values: Any) -> list[Any]:
    """Numbers; times as ISO 8601; categories by name."""
    kind = _kind(axis)
    if kind == "categorical":
        names = {place: name for name, place in getattr(axis.units, "_mapping", {}).items()}
        return [value if isinstance(value, str) else names.get(int(value), plain(value)) for value in values]
    if kind == "datetime":
        return [_time(value) for value in values]
    return [plain(value) for value in values]


def _time(value: Any) -> Any:
    """matplotlib's days since 1970, or a time as it was given."""
    if isinstance(value, (int, float)):
        from matplotlib.dates import num2date  # noqa: PLC0415 - only where there are times

        return num2date(float(value)).isoformat()
    if type(value).__name__ == "datetime64":
        return str(value)
    return plain(value)


def _series(axes: Any, groups: Any) -> list[Json]:
    elements = []
    for number, (artist, xs, ys) in enumerate(groups):
        label = str(artist.get_label())
        points = list(zip(_values(axes.xaxis, list(xs)), _values(axes.yaxis, list(ys)), strict=False))
        elements.append({"label": f"Series {number}" if label.startswith(_HIDDEN) else label, "points": points})
    return elements


def _bars(axes: Any, containers: Any) -> list[Json]:
    elements = []
    for number, container in enumerate(containers):
        across = getattr(container, "orientation", "vertical") == "horizontal"
        axis = axes.yaxis if across else axes.xaxis
        ticks = dict(zip((round(float(place), 6) for place in axis.get_ticklocs()), (label.get_text() for label in axis.get_ticklabels()), strict=False))
        group = str(container.get_label())
        for bar in container.patches:
            middle = bar.get_y() + bar.get_height() / 2 if across else bar.get_x() + bar.get_width() / 2
            near = min(ticks, key=lambda place: abs(place - middle), default=None)
            named = ticks[near] if near is not None and abs(near - middle) <= 0.5 and ticks[near] else f"{middle:g}"
            value = bar.get_width() if across else bar.get_height()
            elements.append({"label": named, "group": f"Group {number}" if group.startswith(_HIDDEN) else group, "value": plain(value)})
    return elements


def _slices(axes: Any, wedges: Any) -> list[Json]:
    """A pie's texts are its labels, each followed by its percentage where it has those."""
    texts = [text.get_text() for text in axes.texts]
    step = len(texts) // len(wedges) if len(wedges) else 0
    elements = []
    for number, wedge in enumerate(wedges):
        label = str(wedge.get_label())
        if label.startswith(_HIDDEN) and step:
            label = texts[number * step] if number * step < len(texts) else ""
        elements.append({"label": "" if label.startswith(_HIDDEN) else label, "angle": plain(wedge.theta2 - wedge.theta1), "radius": plain(wedge.r)})
    return elements


def _boxes(axes: Any, stats: Any) -> list[Json]:
    labels = [label.get_text() for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()]
    elements = []
    for number, one in enumerate(stats):
        label = str(one.get("label") or (labels[number] if number < len(labels) else number + 1))
        elements.append(
            {
                "label": label,
                "min": plain(one["whislo"]),
                "first_quartile": plain(one["q1"]),
                "median": plain(one["med"]),
                "third_quartile": plain(one["q3"]),
                "max": plain(one["whishi"]),
                "outliers": [plain(value) for value in one.get("fliers", ())],
            }
        )
    return elements
