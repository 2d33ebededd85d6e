"""What an API key may be limited to."""

from __future__ import annotations

from collections.abc import Mapping

SCOPES: Mapping[str, str] = {
    "sandboxes:read": "See sandboxes, their metrics, usage and events.",
    "sandboxes:write": "Create, pause, resume, fork, roll back and delete sandboxes.",
    "sandboxes:exec": "Run commands and terminals in sandboxes.",
    "files:read": "Read files of sandboxes.",
    "files:write": "Write, move and remove files of sandboxes.",
    "templates:read": "See templates and snapshots.",
    "templates:write": "Make and delete snapshots.",
    "team:read": "See the team's keys, channels and audit log.",
    "team:write": "Make and revoke the team's keys; set up its channels.",
}
