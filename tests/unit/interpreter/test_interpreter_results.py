"""Rich results: MIME bundles in E2B's fields, frames as data, matplotlib's figures as pictures and as charts that the published package parses."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from interpreter_world import Service, sdk_models

PLOT = "import matplotlib.pyplot as plt, datetime, numpy as np, pandas as pd\n"


def chart(service: Service, code: str) -> Any:
    """The chart of the only figure, parsed by the published package."""
    models, _ = sdk_models()
    results = [line for line in service.run(PLOT + code).results if "png" in line]
    assert len(results) == 1
    assert base64.b64decode(results[0]["png"]).startswith(b"\x89PNG")
    return models.Result(**{name: value for name, value in results[0].items() if name != "type"}).chart


@pytest.mark.parametrize(
    ("code", "field", "value"),
    [
        ("from IPython.display import HTML; HTML('<b>x</b>')", "html", "<b>x</b>"),
        ("from IPython.display import Markdown; Markdown('# x')", "markdown", "# x"),
        ("from IPython.display import SVG; SVG('<svg></svg>')", "svg", "<svg/>"),
        ("from IPython.display import Latex; Latex('$x$')", "latex", "$x$"),
        ("from IPython.display import JSON; JSON({'a': [1]})", "json", {"a": [1]}),
        ("from IPython.display import Javascript; Javascript('1')", "javascript", "1"),
        ("from IPython.display import Image; Image(b'\\xff\\xd8\\xff', format='jpeg')", "jpeg", "/9j/"),
        ("class P:\n    def _repr_pdf_(self): return b'%PDF'\nP()", "pdf", base64.b64encode(b"%PDF").decode()),
        ("class M:\n    def _repr_mimebundle_(self, **_): return {'text/plain': 'm', 'chemical/x': 'y'}\nM()", "extra", {"chemical/x": "y"}),
    ],
)
def test_each_kind_of_result_has_its_field(service: Service, code: str, field: str, value: object) -> None:
    (result,) = service.run(code).results
    assert result[field] == value
    assert result["is_main_result"]
    assert result["text"]


def test_a_picture_of_pillow_is_a_png(service: Service) -> None:
    (result,) = service.run("from PIL import Image\nImage.new('RGB', (2, 2))").results
    assert base64.b64decode(result["png"]).startswith(b"\x89PNG")


def test_a_frame_has_text_html_and_data(service: Service) -> None:
    code = PLOT + "pd.DataFrame({'n': [1, 2], 'f': [0.5, None], 't': pd.to_datetime(['2026-01-02', None]), 's': ['a', None], 'b': [True, False]})"
    (result,) = service.run(code).results
    assert result["data"] == {"n": [1, 2], "f": [0.5, None], "t": ["2026-01-02T00:00:00", None], "s": ["a", None], "b": [True, False]}
    assert "<table" in result["html"]
    assert "2026-01-02" in result["text"]
    (large,) = service.run(PLOT + "pd.DataFrame(np.zeros((100_000, 3)))").results
    assert "data" not in large


def test_a_figure_left_open_is_shown_at_the_end_of_its_cell_and_once(service: Service) -> None:
    run = service.run(PLOT + "plt.plot([1, 2])\nprint('drawn')")
    assert ["png" in line for line in run.results] == [True]
    assert service.run("print('nothing')").results == []


def test_lines(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(
        service,
        "plt.plot([1, 2], [3.5, 4], label='up')\nplt.plot([1, 2], [4, np.nan])\nplt.title('T')\nplt.xlabel('time (s)')\nplt.ylabel('speed [m/s]')\nplt.show()",
    )
    assert isinstance(found, charts.LineChart)
    assert (found.title, found.x_label, found.x_unit, found.y_unit) == ("T", "time (s)", "s", "m/s")
    assert (found.x_scale, found.y_scale) == (charts.ScaleType.LINEAR, charts.ScaleType.LINEAR)
    assert [(element.label, element.points) for element in found.elements] == [("up", [(1, 3.5), (2, 4)]), ("Series 1", [(1, 4), (2, None)])]
    assert len(found.x_ticks) == len(found.x_tick_labels) > 0


def test_scatter_with_categories_and_a_log_scale(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(service, "plt.scatter(['a', 'b'], [10, 100])\nplt.yscale('log')\nplt.show()")
    assert isinstance(found, charts.ScatterChart)
    assert (found.x_scale, found.y_scale) == (charts.ScaleType.CATEGORICAL, charts.ScaleType.LOG)
    assert [element.points for element in found.elements] == [[("a", 10.0), ("b", 100.0)]]


def test_times_are_iso(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(service, "plt.plot([datetime.datetime(2026, 1, 2), datetime.datetime(2026, 1, 3)], [1, 2])\nplt.show()")
    assert found.x_scale is charts.ScaleType.DATETIME
    assert [point[0][:10] for point in found.elements[0].points] == ["2026-01-02", "2026-01-03"]


@pytest.mark.parametrize("code", ["plt.bar(['a', 'b'], [1, 2.5], label='g')", "plt.barh(['a', 'b'], [1, 2.5], label='g')"])
def test_bars(service: Service, code: str) -> None:
    _, charts = sdk_models()
    found = chart(service, code)
    assert isinstance(found, charts.BarChart)
    assert [(bar.label, bar.group, bar.value) for bar in found.elements] == [("a", "g", 1), ("b", "g", 2.5)]


def test_bars_in_groups_as_pandas_draws_them(service: Service) -> None:
    found = chart(service, "_ = pd.DataFrame({'x': [1, 2], 'y': [3, 4]}, index=['p', 'q']).plot.bar()")
    assert [(bar.label, bar.group, bar.value) for bar in found.elements] == [("p", "x", 1), ("q", "x", 2), ("p", "y", 3), ("q", "y", 4)]


def test_a_pie(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(service, "_ = plt.pie([1, 3], labels=['a', 'b'], autopct='%1.0f%%')")
    assert isinstance(found, charts.PieChart)
    assert [(piece.label, piece.angle, piece.radius) for piece in found.elements] == [("a", 90, 1), ("b", 270, 1)]


def test_boxes(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(service, "_ = plt.boxplot([[1, 2, 3, 4, 30], [2, 2, 2]], tick_labels=['p', 'q'])")
    assert isinstance(found, charts.BoxAndWhiskerChart)
    box = found.elements[0]
    assert (box.label, box.min, box.first_quartile, box.median, box.third_quartile, box.max, box.outliers) == ("p", 1, 2, 3, 4, 4, [30])
    assert found.elements[1].label == "q"


def test_several_plots_are_a_superchart_and_the_rest_is_unknown(service: Service) -> None:
    _, charts = sdk_models()
    found = chart(service, "figure, axes = plt.subplots(1, 2)\naxes[0].plot([1, 2])\n_ = axes[1].bar(['a'], [1])\n_ = figure.suptitle('both')")
    assert isinstance(found, charts.SuperChart)
    assert (found.title, [type(one).__name__ for one in found.elements]) == ("both", ["LineChart", "BarChart"])
    picture = chart(service, "plt.imshow(np.zeros((2, 2)))\nplt.title('img')\nplt.show()")
    assert (picture.type, picture.title) == (charts.ChartType.UNKNOWN, "img")
