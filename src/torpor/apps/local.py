"""The local socket of a home: how a second `torpor` on the same home uses the agent that runs there. Unix stream socket, mode 0600; messages are wire.host's.

What a connection created goes when the connection goes: a client that is killed leaves nothing running.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.log import Log
from torpor.model.errors import HostError, InternalError, NotFound, TorporError
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec, Exited, GuestProcess, Output, ProcessInfo, StreamName, Terminal
from torpor.wire.host import VERSION, Decoder, Header, decode_error, encode, encode_error

log = Log()

SOCKET = "torpor.sock"


def find_tagged(processes: Sequence[ProcessInfo], tag: str) -> str | None:
    """The id of the command with this tag, or None."""
    return next((process.exec_id for process in processes if process.tag == tag), None)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for the socket at `path`, good inside: by its directory's descriptor, for an address holds 107 bytes (unix(7)) and homes may lie deeper."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class LocalServer:
    """Serves one engine on `home/torpor.sock`, as a context. The caller holds the home's lock. The socket is put in place by rename, listening already."""

    def __init__(self, engine: Engine, home: Path) -> None:
        self._engine = engine
        self._path = home / SOCKET
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LocalServer:
        temporary = self._path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with _short(temporary) as address:
                listener.bind(address)
                listener.listen()
                os.replace(temporary, self._path)
                self._server = await asyncio.start_unix_server(self._accept, sock=listener)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening and closes connections without ending what they created: clients find the next owner of the home, or become it."""
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A task of our own: the one that asyncio would make complains on standard error when it is cancelled."""
        task = asyncio.create_task(self._serve(reader, writer), name="local-connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Connection(self._engine, writer).run(reader)
        finally:
            writer.close()


class _Connection:
    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._agent = engine.agent
        self._writer = writer
        self._created: set[str] = set()
        self._processes: dict[int, GuestProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[int, Header, bytes], Awaitable[Any]]] = {
            "create": self._create,
            "kill": self._kill,
            "exec": self._exec,
            "find": self._find,
            "attach": self._attach,
            "write": self._write,
            "close_stdin": self._close_stdin,
            "resize": self._resize,
            "signal": self._signal,
            "kill_tree": self._kill_tree,
            "records": self._records,
        }

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Returns when the client is gone, having ended what it created; when cancelled (the agent closes), leaves that to the home's next owner."""
        try:
            await self._read(reader)
        except (ConnectionError, TorporError) as error:
            log.info("local_connection_broken", error=str(error))
        finally:
            for task in self._tasks:
                task.cancel()
            for process in self._processes.values():
                process.detach()
        await self._client_gone()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = Decoder()
        while data := await reader.read(65536):
            for header, body in decoder.feed(data):
                if "hello" in header:
                    self._send({"hello": VERSION, "pid": os.getpid()})
                else:
                    self._start(self._call(header, body))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, header: Header, body: bytes = b"") -> None:
        self._writer.write(encode(header, body))

    async def _client_gone(self) -> None:
        for sandbox_id in self._created:
            await self._agent.kill(sandbox_id)

    async def _call(self, header: Header, body: bytes) -> None:
        number = header["call"]
        try:
            method = self._methods.get(header["method"])
            if method is None:
                raise NotFound(f"The agent here knows no method {header['method']!r}.", mend="Restart it, so that both are of one version.")
            self._send({"answer": number, "result": await method(number, header["args"], body)})
        except TorporError as error:
            self._send({"answer": number, "error": encode_error(error)})
        except OSError as error:  # one that no room expects: the client must not wait for an answer for ever
            log.error("local_call_failed", method=header["method"], exc_info=error)
            self._send({"answer": number, "error": encode_error(HostError(f"{error.filename or 'The system'}: {error.strerror or error}."))})
        except (KeyError, TypeError, ValueError) as error:
            self._send({"answer": number, "error": encode_error(InternalError(f"The call was malformed: {error!r}."))})

    async def _create(self, _: int, args: Header, __: bytes) -> Header:
        spec = CreateSpec(args["source"], Shape(**args["shape"]), NetworkMode(args["network"]), leash=(args["leash"][0], args["leash"][1]))
        await self._engine.ensure(spec.source, lambda _, __: None)
        sandbox = await self._agent.create(spec)
        self._created.add(sandbox.id)
        return {"id": sandbox.id}

    async def _kill(self, _: int, args: Header, __: bytes) -> None:
        await self._agent.kill(args["sandbox"])
        self._created.discard(args["sandbox"])

    async def _exec(self, number: int, args: Header, _: bytes) -> Header:
        guest = await self._agent.guest(args["sandbox"])
        spec = args["spec"]
        terminal = Terminal(**spec.pop("terminal")) if spec.get("terminal") else None
        return self._follow(number, await guest.exec(ExecSpec(**(spec | {"terminal": terminal}))))

    async def _find(self, _: int, args: Header, __: bytes) -> str | None:
        """As attach: what the client finds again goes with this connection."""
        guest = await self._agent.guest(args["sandbox"])
        self._created.add(args["sandbox"])
        return find_tagged(await guest.processes(), args["tag"])

    async def _attach(self, number: int, args: Header, _: bytes) -> Header:
        """The client names what it created through an earlier owner of the home: from here on it goes with this connection."""
        guest = await self._agent.guest(args["sandbox"])
        self._created.add(args["sandbox"])
        return self._follow(number, await guest.attach(args["exec"], stdout_offset=args["stdout"], stderr_offset=args["stderr"]))

    def _follow(self, number: int, process: GuestProcess) -> Header:
        self._processes[number] = process
        self._start(self._pump(number, process))
        return {"exec": process.exec_id, "pid": process.pid}

    async def _pump(self, number: int, process: GuestProcess) -> None:
        try:
            async for piece in process.output():
                self._send({"output": number, "stream": piece.stream.value, "offset": piece.offset}, piece.data)
                await self._writer.drain()
            exited = await process.wait()
            end: Header = {"exited": {"code": exited.code, "signal": exited.signal, "timed_out": exited.timed_out, "oom": exited.oom}}
        except TorporError as error:
            end = {"error": encode_error(error)}
        self._send({"end": number} | end)
        self._processes.pop(number, None)

    async def _write(self, _: int, args: Header, body: bytes) -> None:
        await self._process(args).write(body)

    async def _close_stdin(self, _: int, args: Header, __: bytes) -> None:
        await self._process(args).close_stdin()

    async def _resize(self, _: int, args: Header, __: bytes) -> None:
        await self._process(args).resize(Terminal(args["rows"], args["columns"]))

    async def _signal(self, _: int, args: Header, __: bytes) -> None:
        await self._process(args).signal(args["signal"])

    async def _kill_tree(self, _: int, args: Header, __: bytes) -> None:
        await self._process(args).kill_tree()

    async def _records(self, _: int, __: Header, ___: bytes) -> list[Header]:
        """`conditions`: what is wrong with a sandbox at present, by name, each with a line for a human."""
        return [
            {
                "id": record.id,
                "template": record.template,
                "state": record.state.value,
                "created_at": record.created_at,
                "conditions": {condition.value: note for condition, note in record.conditions.items()},
            }
            for record in self._agent.records()
        ]

    def _process(self, args: Header) -> GuestProcess:
        process = self._processes.get(args["process"])
        if process is None:
            raise NotFound("That command has ended.")
        return process


class AgentGone(ConnectionError):
    """The agent that served this connection ended. What it ran runs on, and is found through the home's next owner."""


class LocalClient:
    """The other end. One reader task; many calls at once. Every method raises AgentGone when the agent ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._processes: dict[int, LocalProcess] = {}
        self._gone = False
        self._task = asyncio.create_task(self._read(), name="local-client")

    @classmethod
    async def connect(cls, home: Path) -> LocalClient:
        """Raises ConnectionError (FileNotFoundError, ConnectionRefusedError) when nobody listens."""
        with _short(home / SOCKET) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        writer.write(encode({"hello": VERSION}))
        return cls(reader, writer)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()

    async def call(self, method: str, body: bytes = b"", **args: Any) -> Any:
        return (await self._call(method, body, args))[1]

    async def _call(self, method: str, body: bytes, args: Header, process: LocalProcess | None = None) -> tuple[int, Any]:
        if self._gone:
            raise AgentGone("The agent of this home ended.")
        self._numbers += 1
        number = self._numbers
        if process is not None:
            self._processes[number] = process
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode({"call": number, "method": method, "args": args}, body))
            await self._writer.drain()
            return number, await answer
        except ConnectionError as error:
            raise AgentGone(str(error)) from error
        finally:
            self._answers.pop(number, None)

    async def start(self, method: str, **args: Any) -> LocalProcess:
        """`exec` or `attach`: calls that are followed by output."""
        process = LocalProcess(self)
        number, result = await self._call(method, b"", args, process)
        process.started(number, result)
        return process

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := await self._reader.read(262144):
                for header, body in decoder.feed(data):
                    await self._take(header, body)
        except ConnectionError:
            log.debug("local_agent_reset")
        finally:
            self._gone = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(AgentGone("The agent of this home ended."))
            for process in self._processes.values():
                await process.lost()

    async def _take(self, header: Header, body: bytes) -> None:
        if "answer" in header:
            answer = self._answers.get(header["answer"])
            if answer is not None and not answer.done():
                if "error" in header:
                    answer.set_exception(decode_error(header["error"]))
                else:
                    answer.set_result(header["result"])
        elif "output" in header:
            await self._processes[header["output"]].took(Output(StreamName(header["stream"]), header["offset"], body))
        elif "end" in header:
            await self._processes.pop(header["end"]).ended(header)


class LocalProcess:
    """A command followed through the local socket: a ports.guest.GuestProcess whose `output` and `wait` raise AgentGone when the agent ends."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._number = 0
        self._pieces: asyncio.Queue[Output | None] = asyncio.Queue(maxsize=64)
        self._exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self.exec_id = ""
        self.pid = 0
        self.held: Mapping[StreamName, range] = {}  # nobody here attaches with `present`

    def started(self, number: int, result: Header) -> None:
        self._number, self.exec_id, self.pid = number, result["exec"], result["pid"]

    async def took(self, piece: Output) -> None:
        await self._pieces.put(piece)

    async def ended(self, header: Header) -> None:
        if "error" in header:
            self._exited.set_exception(decode_error(header["error"]))
            self._exited.exception()
        else:
            self._exited.set_result(Exited(**header["exited"]))
        await self._pieces.put(None)

    async def lost(self) -> None:
        if not self._exited.done():
            self._exited.set_exception(AgentGone("The agent of this home ended."))
            self._exited.exception()
            await self._pieces.put(None)

    async def output(self) -> AsyncIterator[Output]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        if self._exited.exception() is not None:
            await self._exited

    async def wait(self) -> Exited:
        return await asyncio.shield(self._exited)

    async def write(self, data: bytes) -> None:
        await self._client.call("write", data, process=self._number)

    async def close_stdin(self) -> None:
        await self._client.call("close_stdin", process=self._number)

    async def resize(self, terminal: Terminal) -> None:
        await self._client.call("resize", process=self._number, rows=terminal.rows, columns=terminal.columns)

    async def signal(self, number: int) -> None:
        await self._client.call("signal", process=self._number, signal=number)

    async def kill_tree(self) -> None:
        await self._client.call("kill_tree", process=self._number)

    def detach(self) -> None:
        """Nothing is held here: the agent detaches when the connection closes."""
