"""`torpor serve`: HTTP, control plane and host agent of one home in one process. Its microVMs are processes of their own and outlive it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from torpor.api.app import make_app
from torpor.api.protocol import BoundedProtocol
from torpor.api.reach import Reach
from torpor.apps import credential
from torpor.apps.certs import certificate_of
from torpor.apps.control import Outside, People, Wired, control_plane
from torpor.apps.engine import Engine
from torpor.apps.local import LocalServer
from torpor.apps.priority import come_first
from torpor.apps.settings import Settings
from torpor.apps.stock import STOCKED, stock
from torpor.durable import files
from torpor.host.desk import HostDesk
from torpor.hostlink.local import LocalHosts
from torpor.log import Log
from torpor.model.errors import InvalidInput, NoPermission
from torpor.notify.client import Client
from torpor.notify.guard import Guard, networks
from torpor.notify.seal import sealer_of
from torpor.ports.images import Progress
from torpor.service.accounts import SignUp
from torpor.service.context import new_id
from torpor.service.first import FirstStart

log = Log()

GRACE_SECONDS = 5
"""What open requests and streams are given at the end."""
MOST_FRAME = 1 << 20
"""Bytes of a WebSocket message."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where HTTP is served. `certificate` and `private_key`: PEM files for TLS, '' for none."""

    host: str
    port: int
    certificate: str = ""
    private_key: str = ""
    insecure: bool = False

    def check(self) -> None:
        """Raises InvalidInput for an address beyond this machine without TLS, unless that is what was asked for."""
        if bool(self.certificate) != bool(self.private_key):
            raise InvalidInput("TLS needs both a certificate and its key.", mend="Give --tls-certificate and --tls-key.")
        if not (self.certificate or self.insecure or _is_loopback(self.host)):
            raise InvalidInput(
                f"{self.host} can be reached from other machines, and keys would cross the network in the clear.",
                mend="Give --tls-certificate and --tls-key, or --insecure-http where something else encrypts.",
            )

    def url(self, port: int) -> str:
        """With the port that was given when any would do."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(settings: Settings, progress: Progress, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises HomeBusy when the home has an owner, InvalidInput and NoPermission for an address that cannot be served."""
    asyncio.run(serve(settings, progress, say))


async def serve(settings: Settings, progress: Progress, say: Callable[[str], None]) -> None:
    certificate, private_key = certificate_of(settings)
    where = Listening(settings.host, settings.port, certificate, private_key, settings.insecure_http)
    where.check()
    come_first()
    engine = Engine(settings, pool_size=settings.pool_size)
    engine.lock()
    listener = listen(where)
    with listener, beside(where, settings.proxy_port) as more:
        await engine.ensure(STOCKED, progress)
        async with engine, LocalServer(engine, settings.home), embedded(engine, settings) as wired:
            await stock(engine)
            if wired.first is not None:
                hand_over(wired.first, settings.home, say)
            url = where.url(listener.getsockname()[1])
            await credential.keep(settings.home, url, wired.context, wired.first)
            app = make_app(wired.services, Reach(settings.domain, settings.proxy_port))
            await run(app, listener, where, lambda: say(f"torpor serves {url}"), more)
            say("Stopping; sandboxes run on.")


@asynccontextmanager
async def embedded(engine: Engine, settings: Settings) -> AsyncIterator[Wired]:
    """The control plane on this home's own host."""
    desk = HostDesk(host_id(settings.home), engine.agent, settings.home)
    await desk.open()
    try:
        outside = Outside(Client(Guard(networks(settings.notify_networks))), sealer_of(settings.home))
        database = settings.database or settings.home / "torpor.db"
        async with control_plane(LocalHosts(desk), database, settings.redis, people=people(settings), outside=outside) as wired:
            yield wired
    finally:
        await desk.close()


def people(settings: Settings) -> People:
    """What the settings say about them."""
    return People(
        sign_up=SignUp(settings.sign_up),
        origins=tuple(settings.page_origins.split(",")) if settings.page_origins else (),
        proxies=tuple(ip_network(each) for each in settings.trusted_proxies.split(",")) if settings.trusted_proxies else (),
    )


def host_id(home: Path) -> str:
    """This home's name in the records: made once, kept in the home."""
    path = home / "host.id"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made = new_id()
        files.write_new(path, made.encode() + b"\n")
        return made


def hand_over(first: FirstStart, home: Path, say: Callable[[str], None]) -> None:
    """The first key and the administrator's password, once: to the terminal, or, where standard error is no terminal and may be a log, into files that only the
    owner can read."""
    for what, name, secret in (
        ("first key", "first-key", first.key),
        ("first key for E2B's clients", "first-e2b-key", first.e2b_key),
        (f"administrator's password ({first.email})", "first-password", first.password),
    ):
        if not secret:
            continue
        if sys.stderr.isatty():
            say(f"The {what}, shown this once: {secret}")
        else:
            _keep_secret(home / name, secret)
            say(f"The {what} is in {home / name}; take it from there and remove the file.")


def _keep_secret(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(secret + "\n")


def listen(where: Listening) -> socket.socket:
    """The listening socket. Raises InvalidInput for an address that is not this machine's or is taken, NoPermission."""
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    # Named TCP, as socket.create_server does not: asyncio switches Nagle's algorithm off for such sockets only, and answers would wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((where.host, where.port))
        listener.listen(2048)
    except PermissionError:
        listener.close()
        raise NoPermission(f"Port {where.port} is for root.", mend="Choose one above 1023 with --port.") from None
    except OSError as error:
        listener.close()
        raise InvalidInput(f"{where.host}:{where.port} cannot be served: {error.strerror or error}.", mend="Choose another with --host and --port.") from None
    return listener


@contextmanager
def beside(where: Listening, proxy_port: int) -> Iterator[list[socket.socket]]:
    """The socket of the proxy's own port, on the same address; none for port 0. Raises as `listen`."""
    if not proxy_port:
        yield []
        return
    with listen(replace(where, port=proxy_port)) as listener:
        yield [listener]


class _Server(uvicorn.Server):
    """Tells when it is ready; leaves the signals to us."""

    ready: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def configuration(app: FastAPI, where: Listening) -> uvicorn.Config:
    """How uvicorn serves us: bounded before a request is one, errors and requests in our own log only, no trust in headers about where a request came from."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="websockets-sansio",
        ws_max_size=MOST_FRAME,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=where.certificate or None,
        ssl_keyfile=where.private_key or None,
    )


async def run(app: FastAPI, listener: socket.socket, where: Listening, ready: Callable[[], None], more: Sequence[socket.socket] = ()) -> None:
    """Serves until SIGTERM or SIGINT; then open requests have GRACE_SECONDS."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # what goes wrong in a request is in our own log, with its id
    config = configuration(app, where)
    server = _Server(config)
    server.ready = ready

    def stop() -> None:
        server.should_exit = True
        app.state.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await server.serve(sockets=[listener, *more])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
