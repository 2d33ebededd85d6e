"""Why a machine ended that nobody here asked to end: a typed reason, and a line for a human."""

from __future__ import annotations

from torpor.model.sandbox import EndReason
from torpor.ports.processes import ExitRecord
from torpor.ports.vmm import VmmEvent


def why(ended: ExitRecord, event: VmmEvent | None, console: str) -> tuple[EndReason, str]:
    """The typed reason of an end nobody here asked for, with a line for a human."""
    last = console.strip().splitlines()[-1:] or [""]
    if ended.oom:
        return EndReason.OOM, "The microVM's memory limit on the host was reached."
    if event is VmmEvent.GUEST_PANIC or "Kernel panic" in console:
        return EndReason.GUEST_CRASH, f"The guest's kernel stopped: {last[0]}"
    if event is VmmEvent.GUEST_SHUTDOWN or ended.code == 0:
        return EndReason.USER, "It was shut down from inside."
    how = f"signal {ended.signal}" if ended.signal is not None else f"code {ended.code}" if ended.code is not None else "unseen"
    return EndReason.VMM_CRASH, f"The VMM ended ({how}). {last[0]}".strip()
