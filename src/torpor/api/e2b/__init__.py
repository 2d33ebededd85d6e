"""E2B's API: its control plane, at the root of the same address as the native one."""

from torpor.api.e2b.account import account
from torpor.api.e2b.figures import figures
from torpor.api.e2b.listing import listing
from torpor.api.e2b.sandboxes import sandboxes
from torpor.api.e2b.snapshots import snapshots
from torpor.api.e2b.templates import templates

ROUTERS = (
    figures,  # before the sandboxes: `metrics` is no id
    listing,
    sandboxes,
    snapshots,
    templates,
    account,
)
