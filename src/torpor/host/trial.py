"""The canary: when a snapshot differs from this machine only in soft things (another QEMU version), one is tried first, aside, and the verdict kept.

A trial cannot hurt: artefacts are immutable, and the trial's machine has no network and is thrown away.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from torpor.durable import files
from torpor.host.context import Context, new_id
from torpor.host.fit import WAY_OUT, fingerprint
from torpor.host.launch import bring_up, take_down
from torpor.host.record import SandboxRecord
from torpor.model.errors import Incompatible, TorporError
from torpor.model.sandbox import MachineState, NetworkMode
from torpor.ports.store import Artefact


@dataclass(slots=True)
class Canary:
    """Verdicts are kept in `canary.json` in the home, by what was stored and what is here."""

    context: Context

    async def demand(self, artefact: Artefact) -> None:
        """Returns when artefacts of this one's soft fingerprint run here. Raises Incompatible when the trial failed, now or earlier."""
        here = await fingerprint(self.context, artefact.shape, self.context.images.boot())
        key = json.dumps([artefact.fingerprint.soft, here.soft, here.hard.get("profile", "")], sort_keys=True)
        verdicts = self._load()
        if key not in verdicts:
            verdicts[key] = await self._try(artefact)
            self._store(verdicts)
        if verdicts[key]:
            _, soft = artefact.fingerprint.differences(here)
            raise Incompatible(f"A trial start under this VMM failed: {verdicts[key]}", soft, mend=WAY_OUT)

    async def _try(self, artefact: Artefact) -> str:
        """'' when the guest woke and answered, else why not."""
        now = self.context.now()
        record = SandboxRecord(
            id=new_id(),
            template=artefact.template,
            shape=artefact.shape,
            network=NetworkMode.OFF,
            state=MachineState.PAUSED,
            created_at=now,
            changed_at=now,
            generation=artefact.generation,
            disk=artefact.disk,
            leash=(os.getpid(), 0),
            pool=True,
        )
        directory = self.context.records.directory(record.id)
        directory.mkdir(mode=0o711)
        try:
            live = await bring_up(self.context, record, artefact.id, lambda _: None)
            await live.guest.close()
            await live.machine.stop(0.0)
            await take_down(self.context, record.id, live.running, live.slot)
        except TorporError as error:
            return str(error)
        finally:
            directory.rmdir()
        return ""

    def _load(self) -> dict[str, str]:
        try:
            verdicts: dict[str, str] = json.loads(self._path().read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return verdicts

    def _store(self, verdicts: dict[str, str]) -> None:
        temporary = self._path().with_suffix(".new")
        with files.disk_errors("keeping the verdict of a trial start"):
            temporary.write_text(json.dumps(verdicts))
            os.replace(temporary, self._path())

    def _path(self) -> Path:
        return self.context.scratch.parent / "canary.json"
