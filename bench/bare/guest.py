"""The floor's guest agent: JSON lines over the first virtio-serial port, one request at a time. Runs as process 1 on the template's Python."""

import glob
import json
import os
import time

ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
UP_PIECE = 65536
DOWN_PIECE = 65536


def run(argv):
    """One command: its exit code and output, both streams together."""
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2), (os.POSIX_SPAWN_CLOSE, read)]
    pid = os.posix_spawn(argv[0], argv, ENV, file_actions=actions)
    os.close(write)
    out = b""
    while piece := os.read(read, 65536):
        out += piece
    os.close(read)
    return {"rc": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "out": out.decode()}


def spawn(count):
    """What the guest alone needs for /bin/true, in milliseconds each by its own clock."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        os.waitpid(os.posix_spawn("/bin/true", ["true"], ENV), 0)
        times.append((time.perf_counter() - start) * 1e3)
    return {"ms": times, "total": sum(times)}


def dirty(mib):
    """Fresh memory in which no page equals another."""
    global held
    held = bytearray(mib << 20)
    block = bytearray(os.urandom(1 << 20))
    for at in range(0, mib << 20, 1 << 20):
        for byte in range(4):
            block[byte::4096] = os.urandom(256)
        held[at : at + (1 << 20)] = block
    return {"dirty": mib}


def up(port, count, path):
    """Takes `count` raw bytes, into a file where one is named; the host sends them once it has seen `ready`."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if path else None
    os.write(port, b'{"ready":1}\n')
    while count:
        piece = os.read(port, min(count, UP_PIECE))
        count -= len(piece)
        if file is not None:
            os.write(file, piece)
    return {"up": 1}


def down(port, count, path):
    """Sends `count` raw bytes, out of a file where one is named, after a line that says so."""
    file = os.open(path, os.O_RDONLY) if path else None
    os.write(port, b'{"ready":1}\n')
    piece = memoryview(bytes(DOWN_PIECE))
    while count:
        if file is not None:
            piece = memoryview(os.read(file, DOWN_PIECE))
        rest = piece[: min(count, DOWN_PIECE)]
        count -= len(rest)
        while rest:
            rest = rest[os.write(port, rest) :]
    return {"down": 1}


def answer(port, request):
    if "ping" in request:
        return {"pong": 1}
    if "run" in request:
        return run(request["run"])
    if "spawn" in request:
        return spawn(request["spawn"])
    if "dirty" in request:
        return dirty(request["dirty"])
    if "up" in request:
        return up(port, request["up"], request["path"])
    return down(port, request["down"], request["path"])


held = None
while not glob.glob("/dev/vport*"):
    time.sleep(0.005)
port = os.open(glob.glob("/dev/vport*")[0], os.O_RDWR)
os.write(port, b'{"ready":1}\n')
pending = b""
while True:
    pending += os.read(port, 65536)
    while b"\n" in pending:
        line, pending = pending.split(b"\n", 1)
        os.write(port, json.dumps(answer(port, json.loads(line))).encode() + b"\n")
