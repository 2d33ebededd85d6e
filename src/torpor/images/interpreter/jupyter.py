"""Port 8888: as much of a Jupyter server as clients that run code need, over the same contexts.

    GET /api  /api/status  /api/kernelspecs     GET, POST /api/kernels     GET, DELETE /api/kernels/{id}     POST .../interrupt  .../restart
    WebSocket /api/kernels/{id}/channels: messages of protocol 5.3 as JSON text, each with its `channel`

No token, any origin: who reaches this port is decided by the proxy outside. (Messaging in Jupyter: jupyter-client's documentation, "Messaging".)
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import json
import platform
import uuid
from typing import Any

from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .contexts import Cell, Context, Contexts, NoContextError
from .kernels import Ended, Json, KernelFailedError
from .languages import FILES, NAMES, UnknownLanguageError, language
from .mimes import CHART, DATA

_SPECS = ("python3", "wrenn", "javascript", "typescript", "bash")
_VERSION = "5.3"


def _time(seconds: float | None = None) -> str:
    now = datetime.datetime.now(datetime.UTC) if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def kernel_model(context: Context) -> Json:
    state = "busy" if context.busy else "idle"
    last = _time(context.last_activity)
    return {"id": context.id, "name": context.kernel_name, "last_activity": last, "execution_state": state, "connections": len(context.listeners)}


def _spec(name: str) -> Json:
    known = language(name)
    shown = {"python": "Python 3", "javascript": "JavaScript", "typescript": "TypeScript", "bash": "Bash"}[known]
    return {
        "name": name,
        "spec": {"argv": [], "env": {}, "display_name": shown, "language": known, "interrupt_mode": "signal", "metadata": {}},
        "resources": {},
    }


class _Handler(RequestHandler):
    contexts: Contexts

    def initialize(self, contexts: Contexts) -> None:
        self.contexts = contexts

    def set_default_headers(self) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Headers", "*")
        self.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS")

    def options(self, *_path: str) -> None:
        self.set_status(204)

    def reply(self, value: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def log_exception(self, *about: Any) -> None:
        if not isinstance(about[1], (HTTPError, NoContextError, UnknownLanguageError, KernelFailedError)):
            super().log_exception(*about)

    def write_error(self, status_code: int, **about: Any) -> None:
        error = about["exc_info"][1] if "exc_info" in about else None
        statuses = {NoContextError: 404, UnknownLanguageError: 400, KernelFailedError: 400}
        self.reply(
            {"message": str(error or self._reason), "reason": None}, next((status for kind, status in statuses.items() if isinstance(error, kind)), status_code)
        )


class Root(_Handler):
    def get(self) -> None:
        self.reply({"version": "2.0.0"})


class Status(_Handler):
    def get(self) -> None:
        all_of_them = self.contexts.list()
        last = max((context.last_activity for context in all_of_them), default=None)
        open_ones = sum(len(context.listeners) for context in all_of_them)
        self.reply({"started": _time(last), "last_activity": _time(last), "kernels": len(all_of_them), "connections": open_ones})


class Specs(_Handler):
    def get(self) -> None:
        self.reply({"default": "python3", "kernelspecs": {name: _spec(name) for name in _SPECS}})


class Kernels(_Handler):
    def get(self) -> None:
        self.reply([kernel_model(context) for context in self.contexts.list()])

    async def post(self) -> None:
        try:
            body = json.loads(self.request.body or b"{}") or {}
        except ValueError as error:
            raise HTTPError(400, "The body is not JSON.") from error
        name, path = (body.get("name"), body.get("path")) if isinstance(body, dict) else (None, None)
        if not isinstance(name or "", str) or not isinstance(path or "", str) or (name and name.lower() not in NAMES):
            raise HTTPError(400, "There is no such kernel.")
        context = await self.contexts.create(name or "python3", path or "", name or "python3")
        self.set_header("Location", f"/api/kernels/{context.id}")
        self.reply(kernel_model(context), 201)


class OneKernel(_Handler):
    def get(self, kernel_id: str) -> None:
        self.reply(kernel_model(self.contexts.get(kernel_id)))

    async def delete(self, kernel_id: str) -> None:
        await self.contexts.remove(kernel_id)
        self.set_status(204)


class KernelAction(_Handler):
    async def post(self, kernel_id: str, action: str) -> None:
        context = self.contexts.get(kernel_id)
        if action == "interrupt":
            context.interrupt()
            self.set_status(204)
            return
        await context.restart()
        self.reply(kernel_model(context))


class Channels(WebSocketHandler):
    """One client of one kernel. What a cell says goes to all clients of its kernel, as Jupyter does it; a slow one is waited for."""

    contexts: Contexts
    context: Context
    peers: dict[str, set[Channels]] = {}

    def initialize(self, contexts: Contexts) -> None:
        self.contexts = contexts
        self.session = str(uuid.uuid4())
        self._numbers = itertools.count()
        self._work: set[asyncio.Task[None]] = set()
        self._last_parent: Json = {}

    def check_origin(self, origin: str) -> bool:
        return True

    async def get(self, kernel_id: str) -> None:
        try:
            self.context = self.contexts.get(kernel_id)
        except NoContextError:
            self.set_status(404)
            self.finish({"message": "There is no such kernel.", "reason": None})
            return
        await super().get(kernel_id)

    def open(self, *_path: str) -> None:
        self.set_nodelay(True)
        self.peers.setdefault(self.context.id, set()).add(self)
        self.context.listeners.add(self._background)

    def on_close(self) -> None:
        self.context.listeners.discard(self._background)
        peers = self.peers.get(self.context.id, set())
        peers.discard(self)
        if not peers:
            self.peers.pop(self.context.id, None)

    def _background(self, event: Json) -> None:
        message = _published(event, 0)
        if message is not None:
            self._later(self._say("iopub", *message, self._last_parent))

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def on_message(self, message: str | bytes) -> None:
        try:
            request = json.loads(message)
            parent = request["header"]
            kind, content = parent["msg_type"], request.get("content") or {}
            if not isinstance(kind, str) or not isinstance(content, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            self.close(1003, "not a message of the Jupyter protocol as JSON text")
            return
        self._last_parent = parent
        self._later(self._serve(kind, content, parent, request.get("channel") or "shell"))

    async def _say(self, channel: str, kind: str, content: Json, parent: Json) -> None:
        header = {
            "msg_id": f"{self.session}_{next(self._numbers)}",
            "msg_type": kind,
            "username": "torpor",
            "session": self.session,
            "date": _time(),
            "version": _VERSION,
        }
        message = {"header": header, "msg_id": header["msg_id"], "msg_type": kind, "parent_header": parent, "metadata": {}, "content": content}
        with contextlib.suppress(WebSocketClosedError):
            await self.write_message(json.dumps(message | {"buffers": [], "channel": channel}))

    async def _publish(self, kind: str, content: Json, parent: Json) -> None:
        for peer in list(self.peers.get(self.context.id, ())):
            await peer._say("iopub", kind, content, parent)

    async def _serve(self, kind: str, content: Json, parent: Json, channel: str) -> None:
        answer = {
            "execute_request": self._run_cell,
            "kernel_info_request": self._kernel_info,
            "complete_request": self._complete,
            "interrupt_request": self._interrupt,
            "shutdown_request": self._shutdown,
        }.get(kind)
        await self._publish("status", {"execution_state": "busy"}, parent)
        try:
            if answer is not None:
                await answer(content, parent, channel)
            elif kind in _EMPTY:
                await self._say(channel, kind.replace("_request", "_reply"), {"status": "ok"} | _EMPTY[kind], parent)
        except (KernelFailedError, Ended, NoContextError) as error:
            await self._publish("error", {"ename": "KernelDied", "evalue": str(error), "traceback": []}, parent)
        finally:
            await self._publish("status", {"execution_state": "idle"}, parent)

    async def _run_cell(self, content: Json, parent: Json, channel: str) -> None:
        code = content.get("code")
        if not isinstance(code, str):
            await self._say(channel, "execute_reply", {"status": "error", "ename": "ValueError", "evalue": "no code", "traceback": []}, parent)
            return
        cell = Cell(code, {}, silent=bool(content.get("silent")))
        self.context.run(cell)
        reply: Json = {"status": "ok", "user_expressions": {}, "payload": []}
        async for event in cell.events():
            if event["event"] == "started":
                await self._publish("execute_input", {"code": code, "execution_count": cell.count}, parent)
            elif event["event"] == "error":
                reply = {"status": "error", "ename": event["name"], "evalue": event["value"], "traceback": event["traceback"]}
            if (message := _published(event, cell.count)) is not None and not cell.silent:
                await self._publish(*message, parent)
        await self._say(channel, "execute_reply", reply | {"execution_count": cell.count}, parent)

    async def _kernel_info(self, _content: Json, parent: Json, channel: str) -> None:
        extension, mime = FILES[self.context.language]
        version = platform.python_version() if self.context.language == "python" else ""
        about = {"name": self.context.language, "version": version, "file_extension": extension, "mimetype": mime}
        said = {"status": "ok", "protocol_version": _VERSION, "implementation": "torpor", "implementation_version": "1", "banner": "", "help_links": []}
        await self._say(channel, "kernel_info_reply", said | {"language_info": about}, parent)

    async def _complete(self, content: Json, parent: Json, channel: str) -> None:
        code, cursor = content.get("code") or "", content.get("cursor_pos")
        found = await self.context.complete(str(code), cursor if isinstance(cursor, int) else len(str(code)))
        said = {"status": "ok", "matches": found["matches"], "cursor_start": found["start"], "cursor_end": found["end"], "metadata": {}}
        await self._say(channel, "complete_reply", said, parent)

    async def _interrupt(self, _content: Json, parent: Json, channel: str) -> None:
        self.context.interrupt()
        await self._say(channel, "interrupt_reply", {"status": "ok"}, parent)

    async def _shutdown(self, content: Json, parent: Json, channel: str) -> None:
        restart = bool(content.get("restart"))
        if restart:
            await self.context.restart()
        else:
            await self.contexts.remove(self.context.id)
        await self._say(channel, "shutdown_reply", {"status": "ok", "restart": restart}, parent)


_EMPTY: dict[str, Json] = {
    "comm_info_request": {"comms": {}},
    "history_request": {"history": []},
    "inspect_request": {"found": False, "data": {}, "metadata": {}},
    "is_complete_request": {"status": "unknown"},
}
"""What has an answer that is always the same. Other requests have none."""


def _published(event: Json, count: int) -> tuple[str, Json] | None:
    """The message for all clients that an event is; None for one that is none."""
    kind = event["event"]
    if kind in ("stdout", "stderr"):
        return "stream", {"name": kind, "text": event["text"]}
    if kind in ("result", "display", "update"):
        data = {mime: value for mime, value in event["data"].items() if mime not in (CHART, DATA)}
        content: Json = {"data": data, "metadata": event.get("metadata") or {}}
        if kind == "result":
            return "execute_result", content | {"execution_count": count}
        return "display_data" if kind == "display" else "update_display_data", content | {"transient": event.get("transient") or {}}
    if kind == "error":
        return "error", {"ename": event["name"], "evalue": event["value"], "traceback": event["traceback"]}
    if kind == "clear":
        return "clear_output", {"wait": event["wait"]}
    return None


def application(contexts: Contexts, **settings: Any) -> Application:
    given = {"contexts": contexts}
    routes = [
        (r"/api/?", Root, given),
        (r"/api/status", Status, given),
        (r"/api/kernelspecs", Specs, given),
        (r"/api/kernels", Kernels, given),
        (r"/api/kernels/([^/]+)", OneKernel, given),
        (r"/api/kernels/([^/]+)/(interrupt|restart)", KernelAction, given),
        (r"/api/kernels/([^/]+)/channels", Channels, given),
    ]
    return Application(routes, log_function=lambda _handler: None, websocket_max_message_size=256 << 20, **settings)
