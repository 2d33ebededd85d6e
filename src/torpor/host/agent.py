"""The host agent: all sandboxes of one home, and what can be asked of them. It decides nothing about teams, quotas or time-outs; that is the control
plane's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torpor.host.adopt import Settled, Silent, clear_scratch, clear_stray, lost, settle
from torpor.host.chores import Chores
from torpor.host.context import Context, new_id
from torpor.host.fit import demand_fit
from torpor.host.pool import Kind, Pool
from torpor.host.quiet import Quiet
from torpor.host.record import SandboxRecord
from torpor.host.sandbox import Sandbox
from torpor.host.saving import Seed
from torpor.host.trial import Canary
from torpor.host.warm import WarmImages
from torpor.log import Log
from torpor.model.errors import Denied, DenyReason, InvalidInput, NotFound, TorporError
from torpor.model.sandbox import Egress, MachineState, NetworkMode
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind
from torpor.ports.guest import Guest
from torpor.ports.store import Artefact

log = Log()


@dataclass(frozen=True, slots=True)
class CreateSpec:
    """What a new sandbox is to be. `source`: a template's name, or the id of a SNAPSHOT artefact (its vCPUs and memory then come from there, and the
    disk is at least as
    large). `leash`: (pid, start time) of a process it must not outlive. `pooled`: take one made ahead if there is one. `sandbox_id`: see SandboxRecord."""

    source: str
    shape: Shape = field(default_factory=Shape)
    network: NetworkMode = NetworkMode.OFF
    hostname: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    leash: tuple[int, int] | None = None
    pooled: bool = True
    sandbox_id: str = ""
    egress: Egress = field(default_factory=Egress)


class HostAgent:
    """Opened once per home, by the holder of its lock. Every method may be called from many tasks at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sandboxes: dict[str, Sandbox] = {}
        self._warm = WarmImages(context)
        self._canary = Canary(context)
        self._quiet = Quiet()
        self._pool = Pool(context, self._quiet, self._make_pooled, self.kill)
        self._chores: Chores | None = None
        self._listeners: list[Callable[[Sandbox], None]] = []

    @property
    def context(self) -> Context:
        return self._context

    @property
    def pool(self) -> Pool:
        return self._pool

    async def open(self) -> None:
        """Recovers after whatever happened to the last owner: takes machines back, settles the rest, clears away what nobody owns. Then serves."""
        await clear_scratch(self._context)
        await self._context.snapshots.open()
        records, damaged = self._context.records.load()
        records += lost(self._context, {record.id for record in records} | {directory.name for directory in damaged})
        self._register_bases({record.disk.base for record in records})
        for directory, problem in damaged.items():
            log.error("record_damaged", directory=directory.name, problem=problem)
        await self._context.networks.open([record.running.slot for record in records if record.running and record.running.slot])
        self._chores = Chores(self._context)
        await asyncio.gather(*(clear_stray(self._context, path) for path in self._context.records.strays()))
        await asyncio.gather(*(self._settle(record) for record in records))
        self._chores.noticed()

    def _register_bases(self, digests: set[str]) -> None:
        """Makes known every base disk that something stands on: the present templates', and older ones that sandboxes and artefacts still need."""
        for template in self._context.images.templates():
            self._context.disks.register_base(template.digest, template.disk, template.format)
            digests.discard(template.digest)
        for digest in digests | {artefact.disk.base for artefact in self._context.snapshots.list()}:
            try:
                self._context.disks.register_base(digest, self._context.images.template_disk(digest), "raw")
            except TorporError as error:
                log.error("base_disk_missing", digest=digest, error=str(error))

    async def _settle(self, record: SandboxRecord) -> None:
        """One whose machine does not answer is not waited for by the others: it is busy until it does, or is killed."""
        settling = asyncio.create_task(self._until_settled(record), name=f"settle-{record.id}")
        await asyncio.wait({settling}, timeout=self._context.policy.adoption_patience)
        if not settling.done():
            log.warning("machine_silent", sandbox=record.id)
            self._sandboxes[record.id] = Sandbox(self._context, record, changed=self._changed, coming=settling)
            return
        try:
            settled = settling.result()
        except TorporError as error:
            log.error("record_not_settled", sandbox=record.id, error=str(error))
            return
        if settled is not None:
            self._sandboxes[record.id] = Sandbox(self._context, settled[0], settled[1], changed=self._changed)

    async def _until_settled(self, record: SandboxRecord) -> Settled | None:
        while True:
            try:
                settled = await settle(self._context, record)
            except Silent as silent:
                log.warning("machine_silent_still", sandbox=record.id, error=str(silent))
                await asyncio.sleep(self._context.policy.silence_pause)
                continue
            if settled is not None:
                self._context.records.write(settled[0])
                self._context.disks.release(settled[0].disk)  # the record keeps it now
            else:
                self._sandboxes.pop(record.id, None)
            return settled

    def _changed(self, sandbox: Sandbox) -> None:
        if sandbox.record.state in (MachineState.PAUSED, MachineState.ENDED) and self._chores is not None:
            self._chores.noticed()
        for listener in self._listeners:
            listener(sandbox)

    def listen(self, listener: Callable[[Sandbox], None]) -> None:
        """Has `listener` called after each change of a sandbox's record, at once and on the event loop."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Lets go: machines run on for the next owner, pooled ones are ended. Operations under way are finished first."""
        await self._warm.close()
        await self._pool.close()
        await asyncio.gather(*(sandbox.release() for sandbox in self._sandboxes.values()), return_exceptions=True)
        if self._chores is not None:
            await self._chores.close()
        await self._context.networks.close()

    # -- sandboxes -----------------------------------------------------------------------------------------------------------------

    def records(self) -> Sequence[SandboxRecord]:
        """Records of all sandboxes, pooled ones left out, oldest first."""
        held = [sandbox.record for sandbox in self._sandboxes.values() if not sandbox.record.pool]
        return sorted(held, key=lambda record: record.created_at)

    def get(self, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"There is no sandbox {sandbox_id[:40]}.")
        return sandbox

    async def guest(self, sandbox_id: str) -> Guest:
        return await self.get(sandbox_id).guest()

    async def create(self, spec: CreateSpec) -> Sandbox:
        """A running sandbox whose guest has answered. From the pool when one is there, else from the warm image (booted first if there is none).
        Raises NotFound (template,
        snapshot), Incompatible, NoSpace and what a launch raises; nothing is left then."""
        with self._quiet.asked():
            return await self._from_pool(spec) or await self._create(spec, pool=False)

    async def _from_pool(self, spec: CreateSpec) -> Sandbox | None:
        """Only of templates: what a snapshot runs is its owner's, and does not run before somebody asks for it."""
        if not spec.pooled or not self._is_template(spec.source):
            return None
        found = await self._pool.take(Kind(self._context.images.template(spec.source).name, spec.shape, spec.network))
        if found is None:
            return None
        try:
            await found.hand_out(leash=spec.leash, sandbox_id=spec.sandbox_id, hostname=spec.hostname, names=dict(spec.names), egress=spec.egress)
        except BaseException:
            await asyncio.shield(self.kill(found.id))
            raise
        return found

    async def _make_pooled(self, kind: Kind) -> Sandbox:
        return await self._create(CreateSpec(kind.template, kind.shape, kind.network), pool=True)

    async def _create(self, spec: CreateSpec, *, pool: bool) -> Sandbox:
        return await self._start(spec, *await self._source(spec), pool=pool)

    async def _start(self, spec: CreateSpec, template: str, artefact: Artefact, *, pool: bool = False) -> Sandbox:
        shape = Shape(artefact.shape.vcpus, artefact.shape.memory_mib, max(spec.shape.disk_mib, artefact.disk.size_bytes >> 20))
        now = self._context.now()
        record = SandboxRecord(
            id=new_id(),
            template=template,
            shape=shape,
            network=spec.network,
            state=MachineState.PAUSED,
            created_at=now,
            changed_at=now,
            generation=artefact.generation,
            disk=artefact.disk,
            hostname=spec.hostname,
            names=spec.names,
            leash=spec.leash,
            pool=pool,
            sandbox_id=spec.sandbox_id,
            egress=spec.egress,
        )
        sandbox = Sandbox(self._context, record, changed=self._changed)
        self._sandboxes[record.id] = sandbox
        try:
            await sandbox.start(artefact)
        except BaseException:
            await asyncio.shield(self.kill(record.id))
            raise
        return sandbox

    def _is_template(self, source: str) -> bool:
        return source in {name for template in self._context.images.templates() for name in (template.name, *template.aliases)}

    async def _source(self, spec: CreateSpec) -> tuple[str, Artefact]:
        """(template name, artefact to start from)."""
        if self._is_template(spec.source):
            template = self._context.images.template(spec.source)
            self._context.disks.register_base(template.digest, template.disk, template.format)
            return template.name, await self._warm.get(template, spec.shape)
        for artefact in self._context.snapshots.list(ArtefactKind.SNAPSHOT):
            if spec.source in (artefact.id, artefact.owner):
                await self.demand_fit(artefact)
                return artefact.template, artefact
        if spec.source in self._context.snapshots.damaged():
            self._context.snapshots.get(spec.source)  # says so
        self._context.images.template(spec.source)
        raise NotFound(f"There is no template or snapshot {spec.source[:60]!r}.")

    async def demand_fit(self, artefact: Artefact) -> None:
        """Verified, and of a kind with this machine; a canary tells when only soft things differ. Raises Corrupt, Incompatible."""
        await self._context.snapshots.verify(artefact.id)
        if not await demand_fit(self._context, artefact.fingerprint, artefact.shape):
            await self._canary.demand(artefact)

    async def warm(self, template_name: str, shape: Shape) -> Artefact:
        """Makes sure that the warm image is there."""
        template = self._context.images.template(template_name)
        self._context.disks.register_base(template.digest, template.disk, template.format)
        return await self._warm.get(template, shape)

    async def is_warm(self, template_name: str, shape: Shape) -> bool:
        """Whether it is there already. Raises NotFound."""
        return await self._warm.find(self._context.images.template(template_name), self._warm.warm_shape(shape)) is not None

    async def pause(self, sandbox_id: str) -> Artefact:
        return await self.get(sandbox_id).pause()

    async def resume(self, sandbox_id: str) -> Sandbox:
        sandbox = self.get(sandbox_id)
        if sandbox.record.artefact_id and sandbox.record.state is not MachineState.READY:
            await self.demand_fit(self._context.snapshots.get(sandbox.record.artefact_id))
        with self._quiet.asked():
            await sandbox.resume()
        return sandbox

    async def cold_boot(self, sandbox_id: str) -> Sandbox:
        sandbox = self.get(sandbox_id)
        with self._quiet.asked():
            await sandbox.cold_boot()
        return sandbox

    async def snapshot(self, sandbox_id: str, name: str) -> Artefact:
        """A named snapshot; a running source runs on, a paused one stays paused. It has memory of its own, so that each start from it is as cheap as from a
        template. Raises InvalidInput when the name is empty, and as Sandbox.snapshot."""
        if not name or len(name) > 128:
            raise InvalidInput("A snapshot's name has 1 to 128 characters.")
        artefact = await self.get(sandbox_id).snapshot(name)
        if artefact.layer_bytes:  # of a paused one
            artefact = await self._context.snapshots.rebase(artefact.id)
        return artefact

    async def fork(self, sandbox_id: str, count: int = 1, wanted: Sequence[CreateSpec] = ()) -> list[Sandbox]:
        """`count` copies of a running sandbox, each with an identity of its own and on the same leash (or one for each of `wanted`, whose source, shape and
        network are the sandbox's); the source runs on. All or none: when one fails, those made are killed and the error raised."""
        count = len(wanted) or count
        if not 1 <= count <= 1000:
            raise InvalidInput(f"{count} copies: 1 to 1,000 at a time.")
        with self._quiet.asked():
            return await self._fork(self.get(sandbox_id), count, wanted)

    async def _fork(self, source: Sandbox, count: int, wanted: Sequence[CreateSpec]) -> list[Sandbox]:
        seed = await source.seed(count)
        kept = source.record
        spec = CreateSpec(kept.template, replace(kept.shape), kept.network, leash=kept.leash, egress=kept.egress)
        orders = [replace(child, source=spec.source, shape=spec.shape, network=spec.network) for child in wanted] or [spec] * count
        keeping = asyncio.ensure_future(seed.draft.keep())  # the copies start from the page cache; the answer waits for the disk
        try:
            starts = (self._start(order, source.record.template, seed.artefact) for order in orders)
            made = await asyncio.gather(*starts, keeping, return_exceptions=True)
        finally:
            await asyncio.shield(_over(keeping, seed))
        failed = [outcome for outcome in made if isinstance(outcome, BaseException)]
        children = [outcome for outcome in made if isinstance(outcome, Sandbox)]
        if failed:
            await asyncio.gather(*(self.kill(child.id) for child in children))
            raise failed[0]
        return children

    async def rollback(self, sandbox_id: str, artefact_id: str) -> Sandbox:
        """Throws the present state away and goes on from an artefact of this sandbox, or of its template. Raises NotFound, Denied, Incompatible."""
        artefact = self._context.snapshots.get(artefact_id)
        await self.demand_fit(artefact)
        sandbox = self.get(sandbox_id)
        with self._quiet.asked():
            await sandbox.rollback(artefact)
        return sandbox

    async def set_egress(self, sandbox_id: str, egress: Egress) -> None:
        await self.get(sandbox_id).set_egress(egress)

    async def kill(self, sandbox_id: str) -> None:
        """Ends and removes a sandbox from any state; an unknown id is no error, so that a lost reply can be asked again."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        await sandbox.kill()
        if self._sandboxes.pop(sandbox_id, None) is not None:
            await sandbox.release()

    async def delete(self, artefact_id: str) -> None:
        """Removes a snapshot; what sandboxes still stand on stays until they do not. Idempotent: an unknown id is no error. Raises Denied IN_USE for
        the artefact
        that a paused sandbox would resume from: kill the sandbox instead."""
        for sandbox in self._sandboxes.values():
            if sandbox.record.artefact_id == artefact_id:
                raise Denied(DenyReason.IN_USE, f"Sandbox {sandbox.id} would resume from it.", mend="Kill the sandbox, or pause it anew.")
        await self._context.snapshots.delete(artefact_id)
        if self._chores is not None:
            self._chores.noticed()

    async def idle(self) -> None:
        """Returns when background work on the store is done: for operators and tests."""
        if self._chores is not None:
            await self._chores.idle()


async def _over(keeping: asyncio.Future[None], seed: Seed) -> None:
    """Every copy has started, or none will: the draft is not needed any more."""
    await asyncio.wait({keeping})
    await seed.draft.abort()
