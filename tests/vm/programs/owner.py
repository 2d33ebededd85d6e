"""An owner of a home that is to be killed: makes a sandbox with a command that counts, and one that is paused; says so; then works on until the end comes.

usage: owner.py HOME
"""

import asyncio
import json
import sys
from pathlib import Path

from vm_world import open_engine, shell

from torpor.host.agent import CreateSpec
from torpor.log import configure
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec

COUNT = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; echo done >&2; sleep 1000"
SHAPE = Shape(1, 256, 1024)


async def main(home: Path) -> None:
    async with open_engine(home, keep=True) as engine:
        running = await engine.agent.create(CreateSpec("minimal", SHAPE))
        asleep = await engine.agent.create(CreateSpec("minimal", SHAPE))
        await shell(await asleep.guest(), "echo kept > /dev/shm/memory; echo kept > /disk")
        await engine.agent.pause(asleep.id)
        process = await (await running.guest()).exec(ExecSpec(["/bin/sh", "-c", COUNT]))
        print(json.dumps({"running": running.id, "asleep": asleep.id, "exec": process.exec_id}), flush=True)
        while True:
            await engine.agent.snapshot(running.id, "again")
            for artefact in engine.agent.context.snapshots.list(owner="again"):
                await engine.agent.delete(artefact.id)


configure("warning")
asyncio.run(main(Path(sys.argv[1])))
