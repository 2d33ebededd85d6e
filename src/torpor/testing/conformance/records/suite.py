"""All checks. A rig opens stores on one database:

async def test(...): await check(rig)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from torpor.testing.conformance.records import figures, happenings, keys, people, sandboxes, templates, transactions
from torpor.testing.conformance.records.samples import StoreRig

_PARTS = (transactions, sandboxes, templates, people, keys, happenings, figures)
CHECKS: list[Callable[[StoreRig], Awaitable[None]]] = [check for part in _PARTS for name, check in sorted(vars(part).items()) if name.startswith("check_")]
