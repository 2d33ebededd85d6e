"""An owner of a home that dies during a snapshot, once the machine is on its new overlay and before that is noted ("noted"), or before it gets there ("moved").

usage: mover.py HOME moved|noted; prints the sandbox's id first
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from vm_world import open_engine, shell

from torpor.host.agent import CreateSpec
from torpor.host.record import Records, SandboxRecord
from torpor.log import configure
from torpor.model.shapes import Shape
from torpor.vmm.qemu.machine import QemuMachine


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(home: Path, before: str) -> None:
    async with open_engine(home, keep=True) as engine:
        sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024)))
        await shell(await sandbox.guest(), "echo before > /before; sync")
        print(sandbox.id, flush=True)
        layers, write = len(sandbox.record.disk.layers), Records.write

        def write_or_die(records: Records, record: SandboxRecord) -> None:
            if len(record.disk.layers) > layers:
                die()
            write(records, record)

        if before == "noted":
            Records.write = write_or_die  # type: ignore[method-assign]
        else:
            QemuMachine.swap_disk = die  # type: ignore[assignment, method-assign]
        await engine.agent.snapshot(sandbox.id, "never")


configure("warning")
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
