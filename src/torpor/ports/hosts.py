"""The seam between control plane and hosts. A local call or gRPC; nothing of teams, keys or quotas crosses it.

Every order names the sandbox by the control plane's id and the operation by its id, and may be repeated: the host does it once and answers the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torpor.model.sandbox import Condition, Egress, EndReason, NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest


class MachineStatus(Enum):
    """What a host says of one sandbox. BUSY: an operation is under way. ENDED: no machine, its disk is kept."""

    RUNNING = "running"
    PAUSED = "paused"
    BUSY = "busy"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Machine:
    """One sandbox as its host sees it now. `generation` rises with every life of the machine. `stored_bytes`: what it keeps on disk alone.
    `conditions`: what is wrong with it at present, each with a line for a human."""

    sandbox_id: str
    machine_id: str
    status: MachineStatus
    generation: int
    shape: Shape
    stored_bytes: int = 0
    end_reason: EndReason | None = None
    end_note: str = ""
    conditions: Mapping[Condition, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """What a create is to make. `source`: a template's name on the host, or the id of a SNAPSHOT artefact; `names`: variables the guest is told; `egress`
    counts from its first packet on and stays with it over pauses."""

    sandbox_id: str
    operation_id: str
    source: str
    shape: Shape
    network: NetworkMode
    hostname: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    egress: Egress = field(default_factory=Egress)


@dataclass(frozen=True, slots=True)
class Stored:
    """A named snapshot on a host. `name`: the one it was ordered under."""

    artefact_id: str
    name: str
    shape: Shape
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one running machine uses now. `cpu_seconds`: of its VMM since the machine's start (less than before: it is another life)."""

    sandbox_id: str
    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class HostTemplate:
    """A base template that a host can start. `home`: the default user's."""

    name: str
    default_user: str
    home: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the host has, and what is free of it now. `accepts` False: a low-water mark is reached, `problem` says which. `no_network`: why its sandboxes
    cannot have one, '' where they can."""

    vcpus: int
    memory_mib: int
    disk_bytes: int
    free_memory_mib: int
    free_disk_bytes: int
    accepts: bool = True
    problem: str = ""
    no_network: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a host holds: nothing is cleared by reading it."""

    machines: Sequence[Machine]
    snapshots: Sequence[Stored]
    capacity: Capacity


class Host(Protocol):
    """One host. Everything raises HostUnavailable when it cannot be reached; whether the order was carried out is then unknown, and asking again tells."""

    @property
    def id(self) -> str: ...

    async def report(self) -> Report: ...

    async def templates(self) -> Sequence[HostTemplate]: ...

    async def capacity(self) -> Capacity: ...

    def changes(self) -> AsyncIterator[Machine]:
        """Machines that changed by themselves (ended, were adopted) or through an order, from the moment of this call on. A sandbox that changed more than once
        before it was read comes once, as it was last. Ends when the host goes away."""
        ...

    async def readings(self) -> Sequence[Reading]:
        """Of all running machines; cheap enough for every second."""
        ...

    async def create(self, order: Order) -> Machine:
        """Raises NotFound, Incompatible, Corrupt, NoSpace, VmmError, TimedOut; nothing is left then."""
        ...

    async def machine(self, sandbox_id: str) -> Machine:
        """Raises NotFound."""
        ...

    async def pause(self, sandbox_id: str) -> Machine:
        """Durable when it returns. On NoSpace, VmmError, GuestLost the machine runs on, unless it is gone. Raises NotFound, Denied."""
        ...

    async def resume(self, sandbox_id: str) -> Machine:
        """Raises NotFound, Denied, Incompatible, Corrupt, NoSpace, VmmError; it then stays paused."""
        ...

    async def cold_boot(self, sandbox_id: str) -> Machine:
        """From its own disk; memory is lost. A running one is answered as it is: it was asked before. Raises as resume."""
        ...

    async def rollback(self, sandbox_id: str, artefact_id: str) -> Machine:
        """The present life is thrown away. A failure leaves it paused, at `artefact_id` if the old life was gone already. Raises as resume."""
        ...

    async def snapshot(self, sandbox_id: str, name: str) -> Stored:
        """`name` is the control plane's template id: asked again under the same name, the host answers with what it made. A running source runs on, a paused
        one stays paused. Raises NotFound, Denied, NoSpace, VmmError, GuestLost; nothing is left then."""
        ...

    async def fork(self, sandbox_id: str, orders: Sequence[Order]) -> Sequence[Machine]:
        """Children of a running sandbox, which runs on: all or none. `source`, `shape` and `network` of the orders are not looked at: they are the source's.
        Asked again for children that are all there, it answers with them. Raises as snapshot and create."""
        ...

    async def set_egress(self, sandbox_id: str, egress: Egress) -> None:
        """In the place of what it had, for open connections too; kept for later starts. One without a network takes it as well. Raises NotFound, Denied,
        InvalidInput (no network, address or domain), HostError: then what it had holds, or, for later starts, the new."""
        ...

    async def kill(self, sandbox_id: str) -> None:
        """Ends and removes everything of it, from any state. Unknown is no error."""
        ...

    async def delete_snapshot(self, artefact_id: str) -> None:
        """Unknown is no error. Raises Denied IN_USE."""
        ...

    async def guest(self, sandbox_id: str) -> Guest:
        """Raises NotFound, Denied NOT_RUNNING, GuestLost."""
        ...


class Hosts(Protocol):
    """The hosts of one installation."""

    def get(self, host_id: str) -> Host:
        """Raises HostUnavailable for one that is gone or unknown."""
        ...

    def online(self) -> Sequence[Host]: ...
