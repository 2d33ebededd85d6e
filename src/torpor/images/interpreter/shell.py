"""IPython's shell with its outputs sent as events: `display` and `result` (MIME bundles), `error`, `clear`."""

from __future__ import annotations

import base64
import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import BaseFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from .charts import figure_chart, watch_boxes
from .frames import frame_data
from .mimes import CHART, DATA

_BACKEND = "module://matplotlib_inline.backend_inline"
Json = dict[str, Any]
Send = Callable[[Json], None]


class _Hook(DisplayHook):
    """The value of a cell's last expression."""

    def write_output_prompt(self) -> None: ...

    def write_format_data(self, format_dict: Json, md_dict: Json | None = None) -> None:
        self.shell.send({"event": "result", "data": encoded(format_dict), "metadata": encoded(md_dict or {})})

    def finish_displayhook(self) -> None: ...


class _Publisher(DisplayPublisher):
    """What display() shows."""

    def publish(self, data: Json, metadata: Json | None = None, source: str | None = None, *, transient: Json | None = None, **named: Any) -> None:
        event = "update" if named.get("update") else "display"
        self.shell.send({"event": event, "data": encoded(data), "metadata": encoded(metadata or {}), "transient": transient or {}})

    def clear_output(self, wait: bool = False) -> None:
        self.shell.send({"event": "clear", "wait": wait})


class _OfType(BaseFormatter):
    """Objects of one class, named by its module so that it need not be loaded; a fault in it is no fault of the user's."""

    _return_type = (dict, type(None))

    def __init__(self, mime: str, module: str, name: str, make: Callable[[Any], Json | None], **named: Any) -> None:
        super().__init__(**named)
        self.format_type = mime
        self.print_method = "_repr_torpor_"

        def quietly(value: Any) -> Json | None:
            with contextlib.suppress(Exception):
                return make(value)
            return None

        self.for_type_by_name(module, name, quietly)

    def pop(self, typ: Any, default: Any = None) -> Any:
        """The inline backend takes figures from every formatter when their format is chosen anew; ours stay."""
        return default


class Shell(InteractiveShell):
    """`send` takes an event of the running cell."""

    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)

    def __init__(self, **named: Any) -> None:
        self.send: Send = lambda _event: None
        super().__init__(**named)
        self.system = self.system_raw  # its output goes where all output goes, and as it comes
        formatters = self.display_formatter.formatters
        formatters[CHART] = _OfType(CHART, "matplotlib.figure", "Figure", figure_chart, parent=self.display_formatter)
        formatters[DATA] = _OfType(DATA, "pandas", "DataFrame", frame_data, parent=self.display_formatter)
        formatters[DATA].for_type_by_name("pandas.core.frame", "DataFrame", formatters[DATA].deferred_printers[("pandas", "DataFrame")])

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no screen."""

    def ask_exit(self) -> None:
        """exit() and quit() end the cell, as sys.exit() does."""
        raise SystemExit

    def _showtraceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.send({"event": "error", "name": etype.__name__, "value": _said(evalue), "traceback": [str(line) for line in stb]})


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "The error cannot be shown: its __str__ fails."


def encoded(bundle: Json) -> Json:
    """Bytes as base64, since events are JSON."""
    return {key: base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value for key, value in bundle.items()}


def make_shell() -> Shell:
    """One per process. matplotlib draws into results, tracebacks have no colours, no history is written to disk."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.banner1 = ""
    config.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight"}
    shell: Shell = Shell.instance(config=config)
    warnings.filterwarnings("ignore", message="To exit: use")
    import matplotlib.axes  # noqa: PLC0415 - after the shell is there: the inline backend asks for it
    from IPython.core.pylabtools import activate_matplotlib  # noqa: PLC0415
    from matplotlib_inline import backend_inline  # noqa: PLC0415

    activate_matplotlib(_BACKEND)
    backend_inline.configure_inline_support(shell, _BACKEND)
    watch_boxes(matplotlib.axes.Axes)
    return shell
