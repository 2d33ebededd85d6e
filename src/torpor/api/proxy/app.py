"""The proxy: an ASGI layer before everything else. What is addressed to a sandbox (api.reach) it serves; the rest goes on to the API.

    whose?  ->  may they?  ->  awake  ->  connected  ->  exchange         each may end in an answer of the proxy's own (answers)
       \\-- a port of an inner data plane ------------>  that             no guest is connected to

Nothing wakes a sandbox before access to it was checked. While an exchange lasts it counts as activity. It ends with the life of the sandbox's machine: with a
reset where an answer had begun, since nobody may take it for a whole one, and with an answer where it had not.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import h11
from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from torpor.api.auth import address_of, is_secure
from torpor.api.connection import Connection, connection_of
from torpor.api.proxy import answers
from torpor.api.proxy.access import Admitted, Shown, admit, admit_inner
from torpor.api.proxy.answers import Asker, Refused, is_browser, not_found, refusal
from torpor.api.proxy.exchange import Broken, ClientLeft, Exchange
from torpor.api.proxy.headers import PORT_COOKIE, Headers, Smuggling, Way, inward, outward, single, split_query
from torpor.api.proxy.tls import TlsStream
from torpor.api.reach import NATIVE, Misaddressed, Reach, Target
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL
from torpor.log import Log
from torpor.model.errors import Denied, DenyReason, GuestError, GuestOSError, InternalError, InvalidInput, RateLimited, TorporError
from torpor.model.records import Sandbox, SandboxState
from torpor.ports.guest import ByteStream, Guest
from torpor.service.caller import Caller
from torpor.service.lives import Ended, Watch

log = Log()

S = SandboxState
_BETWEEN = frozenset({S.PENDING, S.STARTING, S.PAUSING, S.RESUMING})
_DIAL_PAUSES = (0.1, 0.2, 0.3, 0.4)
"""Seconds between tries to reach a port where nothing listens: a server that was just started, or restarts itself, is about to."""
MOST_OPEN = 1000
"""Connections to one sandbox at a time, in one process."""


class Meters:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("torpor_proxy_requests_total", "Requests to ports of sandboxes, by status.", ["status"], registry=registry)
        self.bytes = Counter("torpor_proxy_answered_bytes_total", "Bytes that servers in sandboxes answered.", registry=registry)
        self.open = Gauge("torpor_proxy_open", "Requests and switched connections to ports of sandboxes under way.", registry=registry)


class Proxy:
    """`inner`: applications that answer for a port of every sandbox in the guest's place; such a port of a guest is never connected to. They are given
    `scope["state"]["sandbox_id"]` (25 digits) and check access themselves where the sandbox is guarded."""

    def __init__(self, app: ASGIApp, services: Services, reach: Reach, meters: Meters, inner: Mapping[int, ASGIApp] | None = None) -> None:
        self._app = app
        self._services = services
        self._reach = reach
        self._meters = meters
        self._inner = dict(inner or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            fields = single(scope["headers"])
            target = self._reach.target(fields, scope.get("server"), scope["raw_path"])
        except (Misaddressed, Smuggling) as error:
            shown, port = (error.shown, error.port) if isinstance(error, Misaddressed) else ("", 0)
            refused = Refused(400, str(error), InvalidInput(str(error)))
            asker = Asker(shown, port, shown.startswith(NATIVE), False, secrets.token_hex(13))
            await answers.response(refused, asker)(scope, receive, send)
            return
        if target is None:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # the server leaves them to us as plain requests, see api.protocol
            raise InternalError("A WebSocket to a sandbox came as one of our own.")
        visit = _Visit(self._services, target, fields, scope, receive, send)
        self._meters.open.inc()
        begin = time.perf_counter()
        try:
            await visit.run(self._inner.get(target.port))
        finally:
            self._meters.open.dec()
            self._meters.bytes.inc(visit.bytes)
            self._meters.requests.labels(str(visit.status)).inc()
            visit.note(time.perf_counter() - begin)


def make_proxy(app: ASGIApp, services: Services, reach: Reach, registry: CollectorRegistry, inner: Mapping[int, ASGIApp] | None = None) -> Proxy:
    """The proxy in front of `app`. See Proxy for `inner`."""
    return Proxy(app, services, reach, Meters(registry), inner)


class _Visit:
    """One request to one port of one sandbox."""

    def __init__(self, services: Services, target: Target, fields: Mapping[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        self._services = services
        self._target = target
        self._fields = fields
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection: Connection = connection_of(scope)
        self._client = HTTPConnection(scope)
        self._request_id = secrets.token_hex(13)
        self._begun = False
        self._complete = False
        self.status = 499
        self.bytes = 0

    async def run(self, inner: ASGIApp | None) -> None:
        """Answers, in whatever way; raises only when cancelled."""
        try:
            await self._serve(inner)
        except Refused as refused:
            await self._refuse(refused)
        except Ended as ended:
            await self._refuse(not_found() if ended.for_good else Refused(409, answers.BETWEEN, Denied(DenyReason.BUSY, str(ended)), answers.SOON))
        except TorporError as error:
            await self._refuse(await self._explained(error))
        except Broken as broken:
            log.info("server_in_sandbox_broke_off", sandbox=self._target.sandbox_id, port=self._target.port, why=str(broken))
            await self._refuse(Refused(502, answers.BROKEN, GuestError(f"{answers.BROKEN}: {broken}"), port=True))
        except h11.LocalProtocolError as error:
            await self._refuse(Refused(400, "The request is no proper HTTP", InvalidInput(f"The request is no proper HTTP: {error}.")))
        except (ClientLeft, ClientDisconnect, WebSocketDisconnect):
            self.status = self.status if self._begun else 499
        except Exception as error:
            log.error("proxied_request_crashed", exc_info=error, request_id=self._request_id)
            await self._refuse(Refused(500, "Something failed on our side", InternalError(repr(error))))

    async def _serve(self, inner: ASGIApp | None) -> None:
        services, target = self._services, self._target
        if not target.sandbox_id:
            raise not_found()
        if services.lives.watched(target.sandbox_id) >= MOST_OPEN:
            raise Refused(429, answers.CROWDED, RateLimited(f"{answers.CROWDED}.", 1), answers.SOON)
        async with services.lives.watch(target.sandbox_id) as watch:
            sandbox = await services.sandboxes.find(target.sandbox_id)
            if sandbox is None:
                raise not_found()
            query, signature = split_query(self._scope["query_string"])
            shown = Shown(self._scope["method"], self._scope["headers"], self._fields, signature, f"{self._scheme}://{self._fields.get('host', '')}")
            if inner is not None:
                await admit_inner(services, sandbox, target, shown)
                await self._to_inner(inner, sandbox, watch)
                return
            admitted = await admit(services, sandbox, target, shown)
            if await self._moves_on(query, admitted):
                return
            async with self._awake(sandbox, admitted.caller, watch) as guest:
                await self._to_guest(guest, sandbox, admitted, query)

    # Getting there

    @asynccontextmanager
    async def _awake(self, sandbox: Sandbox, caller: Caller, watch: Watch) -> AsyncIterator[Guest]:
        async with self._services.sandboxes.use(caller, sandbox.id, f"port {self._target.port}") as guest:
            now = sandbox if sandbox.state is S.RUNNING else await self._services.sandboxes.find(sandbox.id)
            if now is None:
                raise not_found()
            watch.bind(now)
            yield guest

    async def _dial(self, guest: Guest, sandbox: Sandbox, host: str) -> ByteStream:
        stream = await self._connect(guest)
        if self._target.port not in sandbox.exposure.tls_ports:
            return stream
        tls = TlsStream(stream, host.partition(":")[0])
        try:
            await tls.handshake()
        except BaseException as error:
            stream.close()
            if isinstance(error, GuestError):
                raise Broken(error.message, begun=False) from error
            raise
        return tls

    async def _connect(self, guest: Guest) -> ByteStream:
        pauses = iter(_DIAL_PAUSES)
        while True:
            try:
                return await guest.connect(self._target.port)
            except GuestOSError as error:
                pause = next(pauses, None)
                if pause is None or error.errno != errno.ECONNREFUSED:
                    raise refusal(error) from error
            await asyncio.sleep(pause)

    # The exchange

    async def _to_guest(self, guest: Guest, sandbox: Sandbox, admitted: Admitted, query: bytes) -> None:
        way = self._way(sandbox, admitted)
        switch = self._fields.get("upgrade", "").encode("latin-1") if self._connection.wants_switch else b""
        expects = self._fields.get("expect", "").lower() == "100-continue"
        head = inward(self._scope["headers"], way, switch=switch, expects=expects)
        path = self._target.rest if self._target.prefix else self._scope["raw_path"]
        stream = await self._dial(guest, sandbox, way.host)

        async def begin(status: int, headers: Headers) -> None:
            self._begun, self.status = True, status
            await self._send({"type": "http.response.start", "status": status, "headers": outward(headers, way, status) + self._session(admitted)})

        exchange = Exchange(stream, self._receive, self._send, begin)
        try:
            await exchange.run(
                self._scope["method"], path + (b"?" + query if query else b""), head, expects=expects, connection=self._connection if switch else None
            )
        finally:
            stream.close()
            self.bytes, self._complete = exchange.bytes, exchange.complete
            if exchange.begun and not self._begun:
                self._begun, self.status = True, 101

    def _way(self, sandbox: Sandbox, admitted: Admitted) -> Way:
        authority = self._fields.get("host", "")
        host = sandbox.exposure.mask_host.replace("${PORT}", str(self._target.port)) or authority
        return Way(self._scheme, authority, host, address_of(self._client), self._target.prefix, self._target.port, admitted.own)

    @property
    def _scheme(self) -> str:
        return "https" if is_secure(self._client) else "http"

    def _session(self, admitted: Admitted) -> Headers:
        if not admitted.session:
            return []
        seconds = max(1, int(admitted.session.split(".")[1]) - int(time.time()))
        secure = "; Secure" if self._scheme == "https" else ""
        return [(b"set-cookie", f"{PORT_COOKIE}={admitted.session}; Path={self._target.prefix}/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}".encode())]

    async def _moves_on(self, query: bytes, admitted: Admitted) -> bool:
        """Sends a browser that followed a signed address on to the same one without the signature: it has the session then. So is a path that ends with the
        port sent to the one below it, for what is relative on a page to be right. Whether that was it."""
        path = self._target.prefix.encode() + self._target.rest if self._target.prefix else self._scope["raw_path"]
        signed = bool(admitted.session) and self._scope["method"] in ("GET", "HEAD") and is_browser(self._fields)
        bare = bool(self._target.prefix) and not self._target.rest
        if not signed and not bare:
            return False
        place = path + (b"/" if bare else b"") + (b"?" + query if query else b"")
        answer = Response(status_code=302 if signed else 308, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        # whole, for a path may begin with two slashes
        answer.raw_headers.append((b"location", f"{self._scheme}://{self._fields.get('host', '')}".encode("latin-1") + place))
        answer.raw_headers += self._session(admitted)
        self._begun, self.status = True, answer.status_code
        await answer(self._scope, self._receive, self._send)
        return True

    async def _to_inner(self, inner: ASGIApp, sandbox: Sandbox, watch: Watch) -> None:
        """A sandbox that is not there any more, or sleeps and is not to be woken, has no inner data plane either."""
        if sandbox.state in FINAL or sandbox.state is S.STOPPING or (sandbox.state is S.PAUSED and not sandbox.auto_resume):
            raise not_found()
        watch.bind(sandbox)

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._begun, self.status = True, message["status"]
            elif message["type"] == "http.response.body":
                self.bytes += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)
            await self._send(message)

        state = {**self._scope.get("state", {}), "sandbox_id": sandbox.id, "request_id": self._request_id}
        where: dict[str, Any] = {}
        if self._target.prefix:
            raw = self._target.rest or b"/"
            where = {"raw_path": raw, "path": unquote(raw.decode("ascii"))}
        await inner({**self._scope, **where, "state": state}, self._receive, seen)

    # Answers of our own

    async def _explained(self, error: TorporError) -> Refused:
        """`Denied` says of a sandbox in between only that it is not running."""
        if isinstance(error, Denied):
            now = await self._services.sandboxes.find(self._target.sandbox_id)
            if now is not None and now.state in _BETWEEN:
                return Refused(409, answers.BETWEEN, error, answers.SOON)
        return refusal(error)

    async def _refuse(self, refused: Refused) -> None:
        if self._begun:
            if not self._complete:  # else the connection is the client's, for its next request
                self._connection.abort()
            return
        self._begun, self.status = True, refused.status
        asker = Asker(self._target.shown, self._target.port, self._target.native, is_browser(self._fields), self._request_id)
        answer: Response = answers.response(refused, asker)
        self.status = answer.status_code
        await answer(self._scope, self._receive, self._send)

    def note(self, seconds: float) -> None:
        """One line in the log. Neither path nor query: they are the sandbox's affair, and may carry its secrets."""
        log.info(
            "proxied",
            request_id=self._request_id,
            sandbox=self._target.sandbox_id,
            port=self._target.port,
            method=self._scope["method"],
            status=self.status,
            milliseconds=round(seconds * 1e3, 1),
            bytes=self.bytes,
            client=(self._scope.get("client") or ("",))[0],
        )
