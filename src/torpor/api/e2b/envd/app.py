"""The application that answers for port 49983 of a sandbox. Whoever routes a request here puts the sandbox's id into its scope: state["sandbox_id"].

    /process.Process/*        /filesystem.Filesystem/*        the sandbox's token, X-Access-Token
    /metrics   /envs   /files/compose                         the same
    /files                                                    the same, or a signed address
    /health                                                   anybody

What a host would ask of an agent in the guest (/init, /freeze, ...) is not there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torpor.api.e2b.envd import files
from torpor.api.e2b.envd.connect import Methods, answer, failed
from torpor.api.e2b.envd.faults import STATUS, Fault, Gone, fault_of
from torpor.api.e2b.envd.filesystem import Filesystem
from torpor.api.e2b.envd.process import Processes
from torpor.api.e2b.envd.session import Session, demand_reachable, demands_token, find_sandbox, user_of
from torpor.api.e2b.envd.signature import demand_signature
from torpor.api.errors import clean
from torpor.api.follow import Hub
from torpor.api.middleware import BrokenOff, request_id_of
from torpor.api.services import Services
from torpor.log import Log
from torpor.model.errors import GuestLost, GuestOSError, TooLarge, TorporError, Unauthorized

log = Log()

VERSION = "0.6.13"
"""Of the protocol, as the control plane advertises it."""
PORT = 49983
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "*",
}
_PREFLIGHT = _CORS | {
    "Access-Control-Allow-Methods": "HEAD, GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "7200",
}
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT

Handler = Callable[[Session, Request], Awaitable[Response]]


def make_envd(services: Services, hub: Hub | None = None) -> ASGIApp:
    """`hub`: of the dialects that follow the same commands in this server, where there is one."""
    return _Envd(services, hub or Hub())


class _Envd:
    def __init__(self, services: Services, hub: Hub) -> None:
        self._services = services
        self._rpc: dict[str, Methods] = {"process.Process": Processes(hub).methods(), "filesystem.Filesystem": Filesystem().methods()}
        self._plain: dict[tuple[str, str], Handler] = {
            ("GET", "/metrics"): _metrics,
            ("GET", "/envs"): _envs,
            ("GET", "/files"): files.download,
            ("HEAD", "/files"): files.download,
            ("POST", "/files"): files.upload,
            ("POST", "/files/compose"): files.compose,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises BrokenOff where an answer that has begun cannot be completed: its connection must not end as if it were."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        request = Request(scope, receive)
        try:
            response = await self._answer(request)
            for name, value in (_PREFLIGHT if request.method == "OPTIONS" else _CORS).items():
                response.headers[name] = value
            await response(scope, receive, watched)
        except ClientDisconnect:
            log.debug("client_left")
        except (Gone, TorporError) as error:
            log.info("envd_answer_broken_off", sandbox=scope["state"]["sandbox_id"], error=str(error), kind=type(error).__name__)
            raise BrokenOff from error
        except Exception as error:
            if isinstance(error, BrokenOff):
                raise
            log.error("envd_request_crashed", exc_info=error)
            if begun:
                raise BrokenOff from error
            await _plainly(500, "Something failed on our side; the log has the details.")(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        """The response, whatever goes wrong before it begins."""
        if request.method == "OPTIONS":
            return Response(status_code=204)
        sandbox_id: str = request.scope["state"]["sandbox_id"]
        try:
            return await self._route(request, sandbox_id)
        except (Gone, GuestLost):
            return JSONResponse({"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}, 502)

    async def _route(self, request: Request, sandbox_id: str) -> Response:
        path = request.scope["path"]
        sandbox = await find_sandbox(self._services, sandbox_id, request_id_of(request.scope))
        session = Session(self._services, sandbox, request_id=request_id_of(request.scope))
        if path == "/health":
            demand_reachable(sandbox)
            return Response(status_code=204, headers={"Cache-Control": "no-store"}) if request.method in ("GET", "HEAD") else _no_method("GET, HEAD")
        service, _, name = path[1:].partition("/")
        method = self._rpc.get(service, {}).get(name)
        if method is not None:
            try:
                self._admit(request, session)
                session.user = user_of(request)
            except Unauthorized as error:
                return failed(Fault("unauthenticated", error.message))
            except Fault as fault:
                return failed(fault)
            demand_reachable(sandbox)
            return await answer(method, request, session)
        return await self._http(request, session, path)

    async def _http(self, request: Request, session: Session, path: str) -> Response:
        handler = self._plain.get((request.method, path))
        if handler is None:
            allowed = ", ".join(method for method, known in self._plain if known == path)
            return _no_method(allowed) if allowed else _plainly(404, "There is nothing at this path.")
        try:
            self._admit(request, session)
            demand_reachable(session.sandbox)
            session.user = request.query_params.get("username", "")
            return await handler(session, request)
        except files.NotAcceptable:
            return _plainly(406, "a file can be sent as it is or as gzip")
        except Unauthorized as error:
            return _plainly(401, error.message)
        except Fault as fault:
            return _plainly(STATUS[fault.code], fault.message)
        except GuestLost:
            raise
        except TorporError as error:
            said = fault_of(error)
            return _plainly(_status(error, said), said.message)

    def _admit(self, request: Request, session: Session) -> None:
        """Raises Unauthorized for who is not the holder of the sandbox's token, where that is wanted."""
        sandbox, tokens = session.sandbox, self._services.tokens
        if not demands_token(sandbox):
            return
        given = request.headers.get("x-access-token", "")
        if given and tokens.is_access(sandbox.id, given):
            return
        if request.scope["path"] == "/files" and not given:
            demand_signature(request, "read" if request.method in ("GET", "HEAD") else "write", tokens.access(sandbox.id))
            return
        raise Unauthorized("unauthorized access, please provide a valid access token or method signing if supported")


def _status(error: TorporError, fault: Fault) -> int:
    if isinstance(error, GuestOSError) and error.errno in _NO_SPACE:
        return 507
    return 413 if isinstance(error, TooLarge) else STATUS[fault.code]


def _plainly(status: int, message: str) -> JSONResponse:
    return JSONResponse({"code": status, "message": clean(message)}, status)


def _no_method(allowed: str) -> Response:
    response = _plainly(405, "This path knows other methods only.")
    response.headers["Allow"] = allowed
    return response


async def _metrics(session: Session, request: Request) -> Response:
    async with session.guest("metrics") as guest:
        now = await guest.metrics()
    mib = 1 << 20
    return JSONResponse(
        {
            "ts": int(time.time()),
            "cpu_count": now.vcpus,
            "cpu_used_pct": round(now.cpu_percent, 2),
            "mem_total": now.memory_total,
            "mem_used": now.memory_used,
            "mem_cache": now.memory_cache,
            "mem_total_mib": now.memory_total // mib,
            "mem_used_mib": now.memory_used // mib,
            "disk_used": now.disk_used,
            "disk_total": now.disk_total,
        },
        headers={"Cache-Control": "no-store"},
    )


async def _envs(session: Session, request: Request) -> Response:
    return JSONResponse(session.environment(), headers={"Cache-Control": "no-store"})
