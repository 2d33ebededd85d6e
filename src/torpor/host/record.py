"""One file per sandbox: what the host must know to take a machine back, resume it or clear it away. Written before and after every step that has an effect.

A record is JSON of a versioned form, replaced by rename. It is not fsynced: machines do not survive a power cut, and what must, artefacts, has its own
durability and says enough of its sandbox to make a lost record again (`keepsake`, host.adopt).

A full disk must not keep a sandbox from being paused, thawed or killed, so each record has a spare of the same size beside it: the new record is written into
the spare's blocks, and the two change places (renameat2 RENAME_EXCHANGE, flag 2). Only a sandbox's first record needs space. A power cut can persist the
exchange without the bytes (a file system orders the one after the other only for newly allocated blocks): then `record.json` holds an older record, or half of
one. Every record therefore has a serial number, and of the two files the later one that can be read counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torpor.model.errors import Corrupt, Incompatible, InvalidInput, NoPermission, NoSpace
from torpor.model.sandbox import Condition, Egress, EndReason, MachineState, NetworkMode, check_id
from torpor.model.shapes import Shape
from torpor.model.snapshots import Fingerprint
from torpor.ports.store import Artefact, DiskChain
from torpor.ports.vmm import Handle

FORMAT = 1
RECORD, SPARE = "record.json", "record.json.new"
ROOM = 8192
"""Bytes that a record is padded to, so that later ones fit into its blocks."""
_AT_FDCWD = -100
_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class Running:
    """What one life of a machine holds on this host. `handle` is None from the intent until the launch is done. `run_dir` is below the sandbox's directory.
    `restricted`: its slot has, or may have, rules of its own about where it may go."""

    generation: int
    run_dir: str
    artefact_id: str
    memory_id: str
    overlay: str
    uid: int | None
    slot: str | None
    fingerprint: Fingerprint
    handle: Handle | None = None
    restricted: bool = False


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """`disk` is the chain under the live overlay while running, and the whole disk otherwise. `artefact_id`: what a resume returns to, '' for none.
    `leash` is (pid, start time) of a process the sandbox must not outlive. `pool`: made ahead, not handed out yet. `sandbox_id`: what its control plane
    calls it, '' for one that belongs to nobody's records; the guest is told that name rather than `id`. `conditions`: what is wrong with it at present, each
    with a line for a human."""

    id: str
    template: str
    shape: Shape
    network: NetworkMode
    state: MachineState
    created_at: float
    changed_at: float
    generation: int
    disk: DiskChain
    artefact_id: str = ""
    running: Running | None = None
    end_reason: EndReason | None = None
    end_note: str = ""
    hostname: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    leash: tuple[int, int] | None = None
    pool: bool = False
    sandbox_id: str = ""
    conditions: Mapping[Condition, str] = field(default_factory=dict)
    egress: Egress = field(default_factory=Egress)


def encode(record: SandboxRecord, serial: int = 0) -> bytes:
    """The JSON form: enum values by name, nested records as objects. `serial` grows with each record of one sandbox."""
    plain = asdict(record)
    plain["shape"] = {"vcpus": record.shape.vcpus, "memory_mib": record.shape.memory_mib, "disk_mib": record.shape.disk_mib}
    plain["network"] = record.network.value
    plain["state"] = record.state.value
    plain["end_reason"] = record.end_reason.value if record.end_reason else None
    plain["conditions"] = {condition.value: note for condition, note in record.conditions.items()}
    return json.dumps({"format": FORMAT, "serial": serial, "sandbox": plain}, indent=1).encode()


def decode(text: bytes, source: Path) -> tuple[SandboxRecord, int]:
    """Reads a record and its serial. Raises Corrupt (naming `source`) or Incompatible (a later version of torpor wrote it)."""
    try:
        document = json.loads(text)
        version = document["format"]
        if version != FORMAT:
            raise Incompatible(f"{source} has format {version}; this version reads {FORMAT}.", {"format": (str(version), str(FORMAT))})
        return _from_plain(document["sandbox"]), int(document["serial"])
    except Incompatible:
        raise
    except Exception as error:
        raise Corrupt(f"{source} is damaged: {type(error).__name__}: {error}.") from error


def _from_plain(plain: dict[str, Any]) -> SandboxRecord:
    running = plain["running"]
    if running is not None:
        handle = running["handle"]
        running = Running(**(running | {"handle": Handle(**handle) if handle else None, "fingerprint": Fingerprint(**running["fingerprint"])}))
    return SandboxRecord(
        id=check_id(plain["id"]),
        template=plain["template"],
        shape=Shape(**plain["shape"]),
        network=NetworkMode(plain["network"]),
        state=MachineState(plain["state"]),
        created_at=plain["created_at"],
        changed_at=plain["changed_at"],
        generation=plain["generation"],
        disk=chain(plain["disk"]),
        artefact_id=plain["artefact_id"],
        running=running,
        end_reason=EndReason(plain["end_reason"]) if plain["end_reason"] else None,
        end_note=plain["end_note"],
        hostname=plain["hostname"],
        names=plain["names"],
        leash=(plain["leash"][0], plain["leash"][1]) if plain["leash"] else None,
        pool=plain["pool"],
        sandbox_id=plain["sandbox_id"],
        conditions={Condition(name): note for name, note in plain.get("conditions", {}).items()},
        egress=_egress(plain),
    )


def _egress(plain: dict[str, Any]) -> Egress:
    """Of a record of before there was any: none."""
    return Egress(**{side: tuple(given) for side, given in plain.get("egress", {}).items()})


_KEEPSAKE = "sandbox"


def keepsake(record: SandboxRecord) -> dict[str, str]:
    """What an artefact says of its sandbox beyond its own fields: with it a lost record can be made again."""
    plain = {
        "network": record.network.value,
        "created_at": record.created_at,
        "hostname": record.hostname,
        "names": dict(record.names),
        "leash": list(record.leash) if record.leash else None,
        "pool": record.pool,
        "sandbox_id": record.sandbox_id,
        "egress": {"allow": list(record.egress.allow), "deny": list(record.egress.deny)},
        "conditions": {condition.value: note for condition, note in record.conditions.items() if condition is not Condition.HOST_DISK_FULL},
    }
    return {_KEEPSAKE: json.dumps(plain, sort_keys=True)}


def from_keepsake(artefact: Artefact) -> SandboxRecord | None:
    """The record of a paused sandbox as it stood when `artefact` was committed; None when the artefact does not say enough."""
    try:
        plain = json.loads(artefact.extra[_KEEPSAKE])
        return SandboxRecord(
            id=check_id(artefact.owner),
            template=artefact.template,
            shape=artefact.shape,
            network=NetworkMode(plain["network"]),
            state=MachineState.PAUSED,
            created_at=plain["created_at"],
            changed_at=artefact.created_at,
            generation=artefact.generation,
            disk=artefact.disk,
            artefact_id=artefact.id,
            hostname=plain["hostname"],
            names=plain["names"],
            leash=(plain["leash"][0], plain["leash"][1]) if plain["leash"] else None,
            pool=plain["pool"],
            sandbox_id=plain["sandbox_id"],
            conditions={Condition(name): note for name, note in plain.get("conditions", {}).items()},
            egress=_egress(plain),
        )
    except (ValueError, KeyError, TypeError, IndexError, InvalidInput):
        return None


def chain(plain: dict[str, Any]) -> DiskChain:
    return DiskChain(plain["base"], tuple(plain["layers"]), plain["size_bytes"])


class Records:
    """The directory of sandboxes: `<root>/<id>/record.json`, and each machine's run directory beside it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._serials: dict[str, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    def directory(self, sandbox_id: str) -> Path:
        return self._root / sandbox_id

    def write(self, record: SandboxRecord) -> None:
        """Replaces the record. A reader, or the next owner after a crash, sees the old or the new one. Raises NoSpace, NoPermission: then the old one holds."""
        directory = self.directory(record.id)
        current, spare = directory / RECORD, directory / SPARE
        serial = self._serials.get(record.id, 0) + 1
        text = encode(record, serial)
        text += b"\n" * (-len(text) % ROOM)
        try:
            directory.mkdir(mode=0o711, exist_ok=True)
            if not current.exists():
                _overwrite(current.with_suffix(".first"), text)
                _overwrite(spare, text)
                os.rename(current.with_suffix(".first"), current)
            else:
                _overwrite(spare, text)
                _exchange(current, spare)
            self._serials[record.id] = serial
        except PermissionError as error:
            raise NoPermission(f"The record of sandbox {record.id} cannot be written: {error.strerror}.") from error
        except OSError as error:
            raise NoSpace(
                f"The record of sandbox {record.id} cannot be written: {error.strerror}.", mend="Make room on the file system of the home."
            ) from error

    def load(self) -> tuple[list[SandboxRecord], dict[Path, str]]:
        """All records, and what is wrong with those that cannot be read: their directories are left as they are, for a human."""
        records, damaged = [], {}
        for directory in sorted(self._root.iterdir()):
            try:
                record, serial = _latest(directory)
            except FileNotFoundError:
                continue
            except (Corrupt, Incompatible) as error:
                damaged[directory] = error.message
                continue
            records.append(record)
            self._serials[record.id] = max(serial, self._serials.get(record.id, 0))
        return records, damaged

    def strays(self) -> list[Path]:
        """Directories without a record: of a creation that a crash cut short, or of a trial. Nobody was told of them."""
        return [directory for directory in sorted(self._root.iterdir()) if not (directory / RECORD).exists()]

    def remove(self, sandbox_id: str) -> None:
        """Removes the sandbox's directory, record and all. No error when it is gone."""
        shutil.rmtree(self.directory(sandbox_id), ignore_errors=True)
        self._serials.pop(sandbox_id, None)


def _latest(directory: Path) -> tuple[SandboxRecord, int]:
    """The later of the two records that can be read. Raises FileNotFoundError when there is no record, Corrupt, Incompatible when neither can be read."""
    readable = []
    problem: Corrupt | Incompatible | None = None
    for source in (directory / RECORD, directory / SPARE):
        try:
            readable.append(decode(source.read_bytes(), source))
        except FileNotFoundError:
            if source.name == RECORD:
                raise
        except (Corrupt, Incompatible) as error:
            problem = problem or error
    if not readable:
        assert problem is not None
        raise problem
    return max(readable, key=lambda found: found[1])


def _overwrite(path: Path, text: bytes) -> None:
    """Into the file's present blocks, as far as it has any."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]
        os.ftruncate(fd, len(text))
    finally:
        os.close(fd)


def _exchange(one: Path, other: Path) -> None:
    """Two names change places, at once for every reader. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
