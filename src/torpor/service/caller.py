"""Who asks, as the use cases see it: settled once, at the edge."""

from __future__ import annotations

from dataclasses import dataclass

from torpor.model.errors import Forbidden
from torpor.model.records import Actor, ActorKind, Role


@dataclass(frozen=True, slots=True)
class Caller:
    """`team_id`: the team acted for. `user_id`, `role` and `session_id` (the login) are empty for an API key. `scopes` empty: everything a caller of this kind
    may do."""

    team_id: str
    actor: Actor
    user_id: str = ""
    role: Role | None = None
    scopes: frozenset[str] = frozenset()
    is_admin: bool = False
    request_id: str = ""
    session_id: str = ""

    def demand(self, scope: str) -> None:
        """Raises Forbidden for a scope this caller was not given."""
        if self.scopes and scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope}.")


def from_outside(request_id: str = "") -> Caller:
    """Who reaches one sandbox without a key of its team, by what opens that sandbox: its own token, a signed address, a public port. Whether they may, the edge
    has settled for this sandbox, and it asks in this name for nothing else."""
    return Caller("", Actor(ActorKind.SYSTEM, "", "outside"), is_admin=True, request_id=request_id)
