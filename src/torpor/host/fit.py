"""Whether a stored artefact may run here: fingerprints made and compared, and the canary for what may differ."""

from __future__ import annotations

from torpor.host.context import PROFILE, Context
from torpor.model.errors import Incompatible
from torpor.model.shapes import Shape
from torpor.model.snapshots import Fingerprint
from torpor.ports.images import BootImages

WAY_OUT = "Its disk is whole: start it from its own disk instead (a cold boot), or restore what differs."


async def fingerprint(context: Context, shape: Shape, boot: BootImages) -> Fingerprint:
    """What an artefact made now on this machine must agree with later. Disk size is not in it: disks grow."""
    probe = await context.vmm.probe()
    hard = dict(probe.fingerprint_hard) | {
        "profile": str(PROFILE),
        "kernel": boot.kernel_digest,
        "agent": boot.agent_digest,
        "vcpus": str(shape.vcpus),
        "memory_mib": str(shape.memory_mib),
    }
    return Fingerprint(hard, dict(probe.fingerprint_soft))


async def demand_fit(context: Context, stored: Fingerprint, shape: Shape) -> bool:
    """True when it fits as it is; False when only soft fields differ, so that a canary must be tried first. The artefact's own kernel and agent are accepted
    as they are (they travel with it); everything else that is hard must agree. Raises Incompatible, naming each difference."""
    boot = context.images.boot()
    here = await fingerprint(context, shape, boot)
    kept = {field: stored.hard[field] for field in ("kernel", "agent") if field in stored.hard}
    hard, soft = stored.differences(Fingerprint(here.hard | kept, here.soft))
    if hard:
        named = ", ".join(f"{name} {was or 'unknown'} (here {now or 'unknown'})" for name, (was, now) in hard.items())
        raise Incompatible(f"The snapshot was made on a machine that differs: {named}.", hard, mend=WAY_OUT)
    return not soft
