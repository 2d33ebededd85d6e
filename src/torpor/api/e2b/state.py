"""Sandboxes as this dialect shows them. It knows two states:

running    RUNNING, SNAPSHOTTING, PAUSING, MISSING, and while it starts STARTING, PENDING
paused     PAUSED, RESUMING
not there  STOPPING, STOPPED, ERROR
"""

from __future__ import annotations

from torpor.api.e2b import network
from torpor.api.e2b.common import CLIENT_ID, ENVD_VERSION, Json, stamp
from torpor.api.e2b.references import UNNAMED
from torpor.api.services import Services
from torpor.model.domains import EVERYTHING
from torpor.model.records import Sandbox, SandboxState, TimeoutAction
from torpor.model.sandbox import NetworkMode

S = SandboxState
RUNNING = frozenset({S.RUNNING, S.SNAPSHOTTING, S.PAUSING, S.MISSING})
PAUSED = frozenset({S.PAUSED, S.RESUMING})
BY_NAME = {"running": RUNNING, "paused": PAUSED}


def state_of(sandbox: Sandbox) -> str:
    return "paused" if sandbox.state in PAUSED else "running"


def wants_token(sandbox: Sandbox) -> bool:
    """Whether its files and commands open, by E2B's ways, with its access token only: those of secure sandboxes, and of all that were not made by E2B's API."""
    return sandbox.exposure.guarded or sandbox.dialect != "e2b"


def handle(services: Services, sandbox: Sandbox) -> Json:
    """What a client needs to use it. `domain` is left out: clients keep the one they are set to."""
    fields: Json = {"templateID": sandbox.template_id, "sandboxID": sandbox.id, "clientID": CLIENT_ID, "envdVersion": ENVD_VERSION, "trafficAccessToken": None}
    if not UNNAMED.match(sandbox.template):
        fields["alias"] = sandbox.template
    if wants_token(sandbox):
        fields["envdAccessToken"] = services.tokens.access(sandbox.id)
    if not sandbox.exposure.public_ports:
        fields["trafficAccessToken"] = services.tokens.traffic(sandbox.id)
    return fields


def listed(sandbox: Sandbox) -> Json:
    fields: Json = {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "startedAt": stamp(sandbox.created_at),
        "endAt": stamp(_end(sandbox)),
        "cpuCount": sandbox.shape.vcpus,
        "memoryMB": sandbox.shape.memory_mib,
        "diskSizeMB": sandbox.shape.disk_mib,
        "state": state_of(sandbox),
        "envdVersion": ENVD_VERSION,
        "metadata": dict(sandbox.labels),
    }
    return fields if UNNAMED.match(sandbox.template) else fields | {"alias": sandbox.template}


def _end(sandbox: Sandbox) -> float | None:
    """When its life ends; of a paused one when it was paused."""
    if sandbox.state in PAUSED:
        return sandbox.updated_at
    idle = sandbox.last_active_at + sandbox.idle_timeout if sandbox.idle_timeout > 0 else None
    return min((moment for moment in (idle, sandbox.deadline) if moment is not None), default=None)


def detail(services: Services, sandbox: Sandbox) -> Json:
    fields = listed(sandbox) | {
        "lifecycle": {"autoResume": sandbox.auto_resume, "onTimeout": "pause" if sandbox.on_timeout is TimeoutAction.PAUSE else "kill"},
        "network": network.tree(sandbox.exposure, sandbox.egress),
        "allowInternetAccess": sandbox.network is NetworkMode.ON and EVERYTHING not in sandbox.egress.deny,
    }
    if sandbox.state is S.PAUSED:
        fields["pauseMode"] = "filesystem" if sandbox.terms.cold else "full"
    if wants_token(sandbox):
        fields["envdAccessToken"] = services.tokens.access(sandbox.id)
    return fields
