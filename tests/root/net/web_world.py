"""An internet with names: a resolver on the make-believe host, web servers in its internet, and what a guest does to reach them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from net_world import Guest, Namespace

HTTP, HTTPS = 8080, 8443


class Zone:
    """A resolver that answers from `names`; what is not there does not exist (RFC 1035)."""

    def __init__(self, namespace: Namespace, address: str, names: dict[str, list[str]]) -> None:
        self.names = names
        self.asked: list[str] = []
        self._where = (address, 53)
        self._namespace = namespace
        self._udp = namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(self._where)
        self._tcp = namespace.run(lambda: socket.create_server(self._where))
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _answer(self, question: bytes) -> bytes:
        at, labels = 12, []
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        name, kind = ".".join(labels), int.from_bytes(question[at + 1 : at + 3])
        self.asked.append(name)
        found = self.names.get(name.lower())
        addresses = found if found and kind == 1 else []
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + IPv4Address(address).packed for address in addresses)
        code = 0x8180 if found is not None else 0x8183
        return question[:2] + struct.pack(">HHHHH", code, 1, len(addresses), 0, 0) + question[12 : at + 5] + records

    def _serve_udp(self) -> None:
        while True:
            question, peer = self._udp.recvfrom(4096)
            if not question:
                return
            self._udp.sendto(self._answer(question), peer)

    def _serve_tcp(self) -> None:
        while True:
            stream, _ = self._tcp.accept()
            with stream:
                size = stream.recv(2)
                if not size:
                    return
                while size:
                    answer = self._answer(stream.recv(int.from_bytes(size), socket.MSG_WAITALL))
                    stream.sendall(len(answer).to_bytes(2) + answer)
                    size = stream.recv(2, socket.MSG_WAITALL)

    def close(self) -> None:
        def stop() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
                stopper.sendto(b"", self._where)
            socket.create_connection(self._where).close()

        self._namespace.run(stop)
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()


class Web:
    """HTTP on port 8080 and HTTPS on 8443 of every address of a namespace. Says which address was reached and for which name, keeps the names, and echoes
    afterwards. The certificate is for any name that a test uses."""

    def __init__(self, namespace: Namespace, scratch: Path, *names: str) -> None:
        self.seen: list[str] = []
        self._namespace = namespace
        self._tls = _certificate(scratch, *names)
        self._tls.sni_callback = lambda stream, name, _: self._claimed.update({stream: name or ""})
        self._claimed: dict[object, str] = {}
        self._open: list[socket.socket] = []
        self._listeners = [namespace.run(lambda port=port: socket.create_server(("", port), backlog=256)) for port in (HTTP, HTTPS)]  # type: ignore[misc]
        self._threads = [threading.Thread(target=self._accept, args=(listener,)) for listener in self._listeners]
        for thread in self._threads:
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        workers = []
        secure = listener is self._listeners[1]
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                break
            self._open.append(stream)
            workers.append(threading.Thread(target=self._serve, args=(stream, secure)))
            workers[-1].start()
        for worker in workers:
            worker.join()

    def _serve(self, stream: socket.socket, secure: bool) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            stack.callback(stream.close)
            if secure:
                stream = stack.enter_context(self._tls.wrap_socket(stream, server_side=True))
            while data := _head(stream):
                host = next((line[5:].strip().decode() for line in data.split(b"\r\n") if line.lower().startswith(b"host:")), "")
                self.seen.append(self._claimed.get(stream, host))
                said = f"{stream.getsockname()[0]} {self.seen[-1]}".encode()
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + str(len(said)).encode() + b"\r\n\r\n" + said)

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for stream in self._open:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for listener in self._listeners:
            listener.close()


def _head(stream: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = stream.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


def _certificate(scratch: Path, *names: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (scratch / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (scratch / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(scratch / "cert.pem", scratch / "key.pem")
    return context


class Surfer:
    """What a guest does: connects to an address and claims a name, or looks a name up first."""

    def __init__(self, guest: Guest, scratch: Path) -> None:
        self.guest = guest
        self._scratch = scratch

    async def do(self, work: Callable[[], str]) -> str:
        """What `work` saw; the class of the OSError where it raised one."""

        def tried() -> str:
            try:
                return work()
            except ssl.SSLError as error:
                return f"alert {error.reason}"
            except OSError as error:
                return type(error).__name__ if error.errno != 113 else "no route"

        return await self.guest.namespace.do(tried)

    async def http(self, address: str, host: str, port: int = HTTP) -> str:
        """The status and body of one request."""

        def work() -> str:
            with socket.create_connection((address, port), timeout=30) as stream:
                return ask(stream, host)

        return await self.do(work)

    async def https(self, address: str, name: str | None, port: int = HTTPS) -> str:
        context = ssl.create_default_context(cafile=str(self._scratch / "cert.pem"))
        if name is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def work() -> str:
            with socket.create_connection((address, port), timeout=30) as stream, context.wrap_socket(stream, server_hostname=name) as tls:
                return ask(tls, name or address)

        return await self.do(work)


def ask(stream: socket.socket, host: str) -> str:
    """Sends one request, reads one answer of a known length."""
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    data = _head(stream)
    if not data:
        return "ended"
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += stream.recv(65536)
    return f"{head.split()[1].decode()} {body.decode().strip()}"


@contextlib.contextmanager
def closing_all(*things: Zone | Web) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            thing.close()
