"""One command in the guest, seen from the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from torpor.guestlink import convert
from torpor.guestlink.channel import Channel, Request
from torpor.guestlink.errors import broken_pipe, lost
from torpor.guestlink.streams import Stream
from torpor.model.errors import Denied, DenyReason, GuestProtocolError, TorporError
from torpor.ports.guest import Exited, Output, StreamName, Terminal
from torpor.wire import guest as wire

Json = dict[str, Any]


class Ending:
    """How a command ended, once the guest has said so. Exists before the request is sent: the event may come with the reply."""

    def __init__(self) -> None:
        self.exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self.input_broken = False

    def event(self, fields: Json) -> None:
        """Raises wire.ProtocolError."""
        if (reason := lost(fields)) is not None:
            self._fail(reason)
        elif (ended := fields.get("exited")) is not None:
            if not isinstance(ended, dict):
                raise wire.ProtocolError("an end that is none")
            result = convert.exited(ended)
            if not self.exited.done():
                self.exited.set_result(result)
        elif fields.get("stdin") == "broken":
            self.input_broken = True

    def _fail(self, reason: TorporError) -> None:
        if not self.exited.done():
            self.exited.set_exception(reason)
            self.exited.exception()  # nobody has to wait


class RemoteProcess:
    """ports.guest.GuestProcess over a channel."""

    def __init__(self, channel: Channel, request: Request, ending: Ending, reply: Json) -> None:
        self._channel = channel
        self._request = request
        self._ending = ending
        self._exec_id = convert.get(reply, "exec_id", str)
        self._pid = convert.get(reply, "pid", int)
        self._has_input = convert.get(reply, "stdin", bool) or convert.get(reply, "terminal", bool)
        self._terminal = convert.get(reply, "terminal", bool)
        self._names: dict[Stream, StreamName] = {}
        self._input = request.streams[0]
        self._outputs = request.streams[: 1 if self._terminal else 2]
        for spare in request.streams[len(self._outputs) :]:
            spare.close()
        self._arrival = asyncio.Event()
        for stream in self._outputs:
            stream.arrived = self._arrival.set
        self._arrival.set()
        if reply.get("exited") is not None:
            ending.event({"exited": reply["exited"]})
        self.starts = convert.offsets(reply, "starts")
        self.held: Mapping[StreamName, range] = {}
        self.end_held_at(convert.offsets(reply, "tops"))

    @property
    def exec_id(self) -> str:
        return self._exec_id

    @property
    def pid(self) -> int:
        return self._pid

    def end_held_at(self, tops: Sequence[int]) -> None:
        """What there was of each stream ended there."""
        self.held = {name: range(start, top) for name, start, top in zip(StreamName, self.starts, tops, strict=False)}

    async def output(self) -> AsyncIterator[Output]:
        while True:
            self._arrival.clear()
            over = True
            for name, stream in zip((StreamName.STDOUT, StreamName.STDERR), self._outputs, strict=False):
                while (piece := stream.take()) is not None:
                    yield Output(name, *piece)
                over = over and stream.ended
                if not stream.ended and stream.failure is not None:
                    raise stream.failure
            if over:
                return
            await self._arrival.wait()

    async def wait(self) -> Exited:
        return await asyncio.shield(self._ending.exited)

    async def write(self, data: bytes) -> None:
        if not self._has_input:
            raise Denied(DenyReason.NOT_RUNNING, "The command was started without stdin.")
        if self._ending.input_broken or (self._ending.exited.done() and self._ending.exited.exception() is None):
            raise broken_pipe()
        await self._input.write(data)

    async def close_stdin(self) -> None:
        if self._has_input:
            self._input.finish()

    async def resize(self, terminal: Terminal) -> None:
        await self._channel.call("resize", exec_id=self._exec_id, rows=terminal.rows, columns=terminal.columns)

    async def signal(self, number: int) -> None:
        await self._channel.call("signal", exec_id=self._exec_id, number=number)

    async def kill_tree(self) -> None:
        await self._channel.call("kill", exec_id=self._exec_id)

    def detach(self) -> None:
        for stream in self._outputs:
            stream.close()
            stream.gone()


async def begin(channel: Channel, op: str, args: Json) -> RemoteProcess:
    """Starts (op exec) or attaches to (op attach) a command. Cancelled before the answer, a command that was started is killed and forgotten."""
    ending = Ending()
    request = channel.start(op, args, listener=ending.event, main=(True, True), stderr=(False, True))
    if op == "exec":
        request.late = lambda reply: discard(channel, reply)
    reply = await channel.finish(request)
    try:
        return RemoteProcess(channel, request, ending, reply)
    except wire.ProtocolError as error:
        failure = GuestProtocolError(f"The guest agent broke the protocol: {error}.")
        channel.end(failure)
        raise failure from None


def discard(channel: Channel, reply: Json) -> None:
    """The command that nobody waits for any more."""
    if channel.failure is None and isinstance(reply.get("exec_id"), str):
        channel.start("kill", {"exec_id": reply["exec_id"]}).reply.add_done_callback(_look)


def _look(reply: asyncio.Future[Json]) -> None:
    """Takes note of a failure nobody waits for: the channel or the command is gone, and that was the aim."""
    if not reply.cancelled():
        reply.exception()
