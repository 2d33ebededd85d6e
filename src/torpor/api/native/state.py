"""A sandbox as the native dialect shows it. `status` keeps to the words that its SDK knows; `state` is the true one.

pending starting running paused stopped missing error      as they are
pausing, snapshotting -> running       resuming -> starting       stopping -> stopped
"""

from __future__ import annotations

from typing import Any

from torpor.api.native.ids import Prefix, show, stamp
from torpor.model.records import Operation, Sandbox, SandboxState

STATUS = {
    SandboxState.PENDING: "pending",
    SandboxState.STARTING: "starting",
    SandboxState.RUNNING: "running",
    SandboxState.PAUSING: "running",
    SandboxState.PAUSED: "paused",
    SandboxState.RESUMING: "starting",
    SandboxState.SNAPSHOTTING: "running",
    SandboxState.STOPPING: "stopped",
    SandboxState.STOPPED: "stopped",
    SandboxState.ERROR: "error",
    SandboxState.MISSING: "missing",
}


def tree(sandbox: Sandbox) -> dict[str, Any]:
    """The JSON of a sandbox; what is not known yet is left out."""
    shape = sandbox.shape
    fields: dict[str, Any] = {
        "id": show(Prefix.SANDBOX, sandbox.id),
        "status": STATUS[sandbox.state],
        "state": sandbox.state.value,
        "version": sandbox.generation,
        "template": sandbox.template,
        "vcpus": shape.vcpus,
        "memory_mb": shape.memory_mib,
        "disk_size_mb": shape.disk_mib,
        "network": sandbox.network.value,
        "timeout_sec": int(sandbox.idle_timeout),
        "on_timeout": sandbox.on_timeout.value,
        "auto_resume": sandbox.auto_resume,
        "metadata": dict(sandbox.labels),
        "created_at": stamp(sandbox.created_at),
        "last_active_at": stamp(sandbox.last_active_at),
        "last_updated": stamp(sandbox.updated_at),
        "stored_bytes": sandbox.stored_bytes,
    }
    for name, at in (("started_at", sandbox.started_at), ("expires_at", sandbox.deadline), ("ended_at", sandbox.ended_at)):
        if at is not None:
            fields[name] = stamp(at)
    if sandbox.operation is not None:
        fields["operation"] = operation_tree(sandbox.operation)
    if sandbox.end_reason is not None:
        fields["end_reason"] = sandbox.end_reason.value
        fields["end_note"] = sandbox.end_note
    return fields


def operation_tree(operation: Operation) -> dict[str, Any]:
    return {"id": operation.id, "kind": operation.kind.value, "started_at": stamp(operation.started_at), "cause": operation.cause}
