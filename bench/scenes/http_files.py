"""S8 over HTTP: files up and down against what the bare channel carries, in the guest's memory so that no disk is measured; and what the server's memory does
while 1 GiB goes through it, by the native API and by E2B's."""

from __future__ import annotations

from collections.abc import AsyncIterator

from floor import Clock
from serving import Api, Refused, Server, forget_peak, peak
from stage import TEMPLATE, Stage, kill, sandbox

SIZE = 64 << 20
LARGE = 1 << 30
PIECE = 1 << 18
PATH = "/dev/shm/bench"
ON_DISK = "/home/user/large"
EDGE = "torpor-bench"
OCTETS = {"Content-Type": "application/octet-stream"}
ENVD = "49983"


async def measure(stage: Stage) -> None:
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        for number in range(stage.counts.channel):
            stage.say(f"files up and down: round {number + 1} of {stage.counts.channel}")
            await stage.bare(lambda: _bare(stage))
            async with stage.attempt("h_upload"), sandbox(api) as (capsule, _):
                stage.samples.add("h_upload", SIZE / await _up(api, capsule, PATH, SIZE) / 1e3)
                stage.samples.add("h_download", SIZE / await _down(api, capsule, PATH, SIZE) / 1e3)
        stage.say("1 GiB up and down")
        async with stage.attempt("h_upload_memory"), sandbox(api) as (capsule, _):
            before = forget_peak(server.pid)
            await _up(api, capsule, ON_DISK, LARGE)
            stage.samples.add("h_upload_memory", (peak(server.pid) - before) / 1e6)
            before = forget_peak(server.pid)
            await _down(api, capsule, ON_DISK, LARGE)
            stage.samples.add("h_download_memory", (peak(server.pid) - before) / 1e6)
        stage.say("1 GiB up and down through E2B's /files")
        async with stage.attempt("e_upload_memory"):
            await _envd(stage, server, api)


def _bare(stage: Stage) -> None:
    vm, _ = stage.small.start()
    up, down = stage.small.throughput(vm, SIZE)
    stage.samples.add("h_upload", floor=up / 1e6)
    stage.samples.add("h_download", floor=down / 1e6)
    stage.small.kill(vm)


async def _up(api: Api, capsule: str, path: str, size: int) -> float:
    """Milliseconds."""
    before = f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode()
    after = f"\r\n--{EDGE}--\r\n".encode()
    clock = Clock()
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE}"}
    api.begin("POST", f"/v1/capsules/{capsule}/files/stream/write?path={path}", headers, len(before) + size + len(after))
    await api.send(before)
    await _zeros(api, size)
    await api.send(after)
    await _taken(api, 204)
    return clock()


async def _down(api: Api, capsule: str, path: str, size: int) -> float:
    """Milliseconds."""
    clock = Clock()
    api.begin("GET", f"/v1/capsules/{capsule}/files/content?path={path}", {}, 0)
    await _counted(api, size)
    return clock()


async def _envd(stage: Stage, server: Server, api: Api) -> None:
    made = (await api.call("POST", "/sandboxes", {"templateID": TEMPLATE, "timeout": 3600, "secure": True}, {"Prefer": "wait=300"})).tree(201)
    capsule = made["sandboxID"]
    try:
        async with server.api(E2b_Sandbox_Id=capsule, E2b_Sandbox_Port=ENVD, X_Access_Token=made["envdAccessToken"]) as inner:
            path = f"/files?path={ON_DISK}&username=user"
            before = forget_peak(server.pid)
            inner.begin("POST", path, OCTETS, LARGE)
            await _zeros(inner, LARGE)
            await _taken(inner, 200)
            stage.samples.add("e_upload_memory", (peak(server.pid) - before) / 1e6)
            before = forget_peak(server.pid)
            inner.begin("GET", path, {}, 0)
            await _counted(inner, LARGE)
            stage.samples.add("e_download_memory", (peak(server.pid) - before) / 1e6)
    finally:
        await kill(api, f"cl-{capsule}")


async def _zeros(api: Api, size: int) -> None:
    piece = bytes(PIECE)
    for _ in range(0, size, PIECE):
        await api.send(piece)


async def _taken(api: Api, expected: int) -> None:
    status, pieces = await api.answer()
    said = b"".join([piece async for piece in pieces])
    if status != expected:
        raise Refused(f"{status}: {said[:300]!r}")


async def _counted(api: Api, size: int) -> None:
    status, pieces = await api.answer()
    got = await _length(pieces)
    if (status, got) != (200, size):
        raise Refused(f"{status}: {got} bytes instead of {size}.")


async def _length(pieces: AsyncIterator[bytes]) -> int:
    got = 0
    async for piece in pieces:
        got += len(piece)
    return got
