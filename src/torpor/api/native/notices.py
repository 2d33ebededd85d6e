"""An event as channels tell it: JSON for webhooks, a title and lines for people.

{"id": 17, "event": "capsule.created", "timestamp": "...", "team_id": "team-...", "actor": {"type", "id", "name"}, "resource": {"id", "type"}, "data": {}}
"""

from __future__ import annotations

import json
from typing import Any

from torpor.api.errors import clean
from torpor.api.native.events import resource
from torpor.api.native.ids import Prefix, show, stamp
from torpor.model.records import Actor, ActorKind, Event
from torpor.ports.notify import Message

_TITLES = {
    "capsule.created": "Sandbox {} was created",
    "capsule.running": "Sandbox {} runs again",
    "capsule.paused": "Sandbox {} was paused",
    "capsule.destroyed": "Sandbox {} has ended",
    "capsule.error": "Sandbox {} broke",
    "capsule.failed": "Sandbox {}: an operation failed",
    "capsule.missing": "Sandbox {}: its host does not answer",
    "template.snapshot.created": "Snapshot {} was made",
    "template.snapshot.deleted": "Snapshot {} was deleted",
    "channel.test": "A test of this channel",
}
_ACTORS = {ActorKind.USER: Prefix.USER, ActorKind.API_KEY: Prefix.KEY}


def payload(event: Event) -> dict[str, Any]:
    return {
        "id": event.sequence,
        "event": event.name,
        "timestamp": stamp(event.at),
        "team_id": show(Prefix.TEAM, event.team_id),
        "actor": _actor(event.actor),
        "resource": {"id": resource(event), "type": event.resource_type},
        "data": {name: clean(value) for name, value in event.data.items()},
    }


def _actor(actor: Actor) -> dict[str, str]:
    fields = {"type": actor.kind.value}
    if actor.id:
        fields["id"] = show(_ACTORS[actor.kind], actor.id) if actor.kind in _ACTORS else actor.id
    if actor.name:
        fields["name"] = actor.name
    return fields


def message(event: Event, delivery_id: str) -> Message:
    """`delivery_id` '': of a test."""
    shown = payload(event)
    actor = shown["actor"]
    lines = {
        "Event": event.name,
        "Resource": f"{event.resource_type} {shown['resource']['id']}".strip(),
        "Actor": " ".join(filter(None, (actor["type"], actor.get("name", "")))),
        "Team": shown["team_id"],
        "Time": shown["timestamp"],
    }
    for name, label in (("reason", "Reason"), ("message", "Error")):
        if event.data.get(name):
            lines[label] = clean(event.data[name])[:300]
    title = _TITLES.get(event.name, event.name).format(shown["resource"]["id"])
    text = "\n".join(f"{label}: {_line(value)}" for label, value in lines.items())
    return Message(show(Prefix.DELIVERY, delivery_id), json.dumps(shown, separators=(",", ":")).encode(), title, text)


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
