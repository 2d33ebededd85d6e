"""Port 49999, as the E2B SDKs use it.

    POST /execute {code, context_id?, language?, env_vars?}     lines of JSON: number_of_executions, stdout, stderr, result, error
    GET, POST /contexts    DELETE /contexts/{id}    POST /contexts/{id}/restart, /interrupt    GET /health

Errors are JSON {"message"}: 400 for what makes no sense, 404 for an unknown context, 503 while the service starts.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from .contexts import Cell, Context, Contexts, NoContextError
from .kernels import Ended, Json, KernelFailedError
from .languages import UnknownLanguageError
from .mimes import CHART, DATA

LARGEST_BODY = 256 << 20
_FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    DATA: "data",
    CHART: "chart",
}


def result_line(event: Json) -> Json:
    """A MIME bundle in E2B's fields; what has none is in `extra`. Quotes around a lone string are taken away, as E2B does."""
    line: Json = {"type": "result", "is_main_result": event["event"] == "result"}
    extra: Json = {}
    for mime, value in event["data"].items():
        if mime in _FIELDS:
            line[_FIELDS[mime]] = value
        else:
            extra[mime] = value
    text = line.get("text")
    if isinstance(text, str) and len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        line["text"] = text[1:-1]
    if extra:
        line["extra"] = extra
    return line


def line_of(event: Json) -> Json | None:
    """The line for a cell's event; None where E2B has none."""
    kind = event["event"]
    if kind in ("stdout", "stderr"):
        return {"type": kind, "text": event["text"], "timestamp": time.time_ns()}
    if kind in ("result", "display", "update"):
        return result_line(event)
    if kind == "error":
        return {"type": "error", "name": event["name"], "value": event["value"], "traceback": "\n".join(event["traceback"])}
    if kind == "started":
        return {"type": "number_of_executions", "execution_count": event["count"]}
    return None


class _Handler(RequestHandler):
    contexts: Contexts

    def initialize(self, contexts: Contexts) -> None:
        self.contexts = contexts

    def body(self) -> Json:
        """The request's JSON object; an empty body counts as one. Raises HTTPError 400."""
        try:
            found = json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise HTTPError(400, "The body is not JSON: %s", error) from error
        if not isinstance(found, dict):
            raise HTTPError(400, "The body is not a JSON object.")
        return found

    def text(self, body: Json, name: str) -> str:
        """A string field; null and absence are ''. Raises HTTPError 400."""
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise HTTPError(400, f"`{name}` must be a string.")
        return value or ""

    def log_exception(self, *about: Any) -> None:
        if not isinstance(about[1], (HTTPError, NoContextError, UnknownLanguageError, KernelFailedError, StreamClosedError)):
            super().log_exception(*about)

    def write_error(self, status_code: int, **about: Any) -> None:
        error = about["exc_info"][1] if "exc_info" in about else None
        statuses = {NoContextError: 404, UnknownLanguageError: 400, KernelFailedError: 400, Ended: 500}
        self.set_status(next((status for kind, status in statuses.items() if isinstance(error, kind)), status_code))
        said = error.log_message or self._reason if isinstance(error, HTTPError) else str(error or self._reason)
        self.finish({"message": said % error.args if isinstance(error, HTTPError) and error.args else said})


class Execute(_Handler):
    cell: Cell | None = None

    async def post(self) -> None:
        context, self.cell = self._order(self.body())
        self.request.connection.stream.set_nodelay(True)  # each line is written when it comes, and must not wait for the last one's acknowledgement
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-store")
        context.run(self.cell)
        try:
            async for event in self.cell.events():
                if (line := line_of(event)) is not None:
                    self.write(json.dumps(line).encode() + b"\n")
                    await self.flush()
        except StreamClosedError:
            self.cell.abandon()
        if self.cell.abandoned:
            self._auto_finish = False  # there is nobody to finish it for

    def _order(self, body: Json) -> tuple[Context, Cell]:
        if not isinstance(body.get("code"), str):
            raise HTTPError(400, "`code` must be a string.")
        context_id, language = self.text(body, "context_id"), self.text(body, "language")
        if context_id and language:
            raise HTTPError(400, "Either `context_id` or `language`, not both.")
        env = body.get("env_vars") or {}
        if not isinstance(env, dict) or not all(name and "=" not in name and "\0" not in f"{name}{value}" for name, value in env.items()):
            raise HTTPError(400, "`env_vars` must be an object of names and values.")
        context = self.contexts.get(context_id) if context_id else self.contexts.default(language or "python")
        return context, Cell(body["code"], {name: str(value) for name, value in env.items()})

    def on_connection_close(self) -> None:
        if self.cell is not None:
            self.cell.abandon()


def described(context: Context) -> Json:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}


class All(_Handler):
    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps([described(context) for context in self.contexts.list()]))

    async def post(self) -> None:
        body = self.body()
        self.finish(described(await self.contexts.create(self.text(body, "language") or "python", self.text(body, "cwd"))))


class One(_Handler):
    async def delete(self, context_id: str) -> None:
        await self.contexts.remove(context_id)
        self.set_status(204)


class Restart(_Handler):
    async def post(self, context_id: str) -> None:
        context = self.contexts.get(context_id)
        await context.restart()
        self.finish(described(context))


class Interrupt(_Handler):
    def post(self, context_id: str) -> None:
        self.contexts.get(context_id).interrupt()
        self.set_status(204)


class Rehearse(RequestHandler):
    """For a machine that waits in a pool: a few cells through both ports. Refused once a user ran something, whose variables would be gone."""

    async def post(self) -> None:
        if not await self.application.settings["rehearse"]():
            self.set_status(409)
            self.finish({"message": "Cells have run here."})


class Health(RequestHandler):
    def get(self) -> None:
        ready = self.application.settings["ready"]()
        self.set_status(200 if ready else 503)
        self.finish("OK" if ready else "starting")


def application(contexts: Contexts, **settings: Any) -> Application:
    given = {"contexts": contexts}
    routes = [
        (r"/execute", Execute, given),
        (r"/contexts", All, given),
        (r"/contexts/([^/]+)", One, given),
        (r"/contexts/([^/]+)/restart", Restart, given),
        (r"/contexts/([^/]+)/interrupt", Interrupt, given),
        (r"/health", Health),
        (r"/rehearse", Rehearse),
    ]
    return Application(routes, log_function=lambda _handler: None, **settings)
