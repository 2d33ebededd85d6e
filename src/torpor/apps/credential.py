"""What lets this machine's own user work with `torpor` at once: address and key of the home's server, in a file that only that user can read
(docs/decisions/0061-a-key-for-the-machines-own-user.md). `torpor`'s command line reads it (cli.remote).

The key is one of its own, made at the first start with the first team, and can be revoked like any other. The address is written anew at every start.
"""

from __future__ import annotations

import json
import os
import secrets
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from torpor.model.records import SYSTEM, ApiKey, AuditEntry, AuditStatus
from torpor.service.access import digest_of
from torpor.service.context import Context
from torpor.service.first import FirstStart, new_key

FILE = "client.json"
NAME = "torpor on the server's machine"


async def keep(home: Path, url: str, context: Context, first: FirstStart | None) -> None:
    """At a start, once the server serves at `url`. A file that was removed stays so: a key can be given otherwise."""
    secret = await _make(context, first.team_id) if first is not None and first.key else kept(home)
    if secret:
        _write(home / FILE, {"url": reachable(url), "key": secret})


async def _make(context: Context, team_id: str) -> str:
    secret, now = new_key(), context.now()
    key = ApiKey(context.new_id(), team_id, NAME, digest_of(secret), secret[:10], now)
    async with context.store.write() as records:
        await records.keys.add(key)
        await records.audit.add(AuditEntry(team_id, now, SYSTEM, "api_key", key.id, "create", AuditStatus.SUCCESS, metadata={"name": key.name}))
    return secret


def kept(home: Path) -> str:
    """The key in the file, '' for none."""
    try:
        tree = json.loads((home / FILE).read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return str(tree.get("key", "")) if isinstance(tree, dict) else ""


def reachable(url: str) -> str:
    """From this machine: an address that stands for all of them becomes loopback's."""
    parts = urlsplit(url)
    try:
        everywhere = ip_address(parts.hostname or "").is_unspecified
    except ValueError:
        return url
    if not everywhere:
        return url
    host = "[::1]" if ":" in (parts.hostname or "") else "127.0.0.1"
    return urlunsplit((parts.scheme, f"{host}:{parts.port}", "", "", ""))


def _write(path: Path, tree: dict[str, str]) -> None:
    """Never readable by others, not even for a moment."""
    temporary = path.with_name(f"{FILE}.{secrets.token_hex(4)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(tree, file)
            file.write("\n")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
