"""`torpor templates` and `torpor keys`."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime, timedelta

from torpor.cli.remote import Refused, ago, lines, plain, run, target
from torpor.cli.show import FAILED, Screen
from torpor.client.asynchronous import AsyncClient
from torpor.client.errors import ClientError


def templates(words: Namespace, screen: Screen) -> int | None:
    """None when there is no server to ask."""
    if not target(words)[1]:
        return None

    async def work(client: AsyncClient) -> int:
        for name in words.remove:
            await client.templates.delete(name)
        found = [each async for each in client.templates.list()]
        if words.json:
            screen.document({"templates": [plain(each) for each in found]})
        elif words.quiet:
            lines([each.name for each in found])
        else:
            rows: list[dict[str, object]] = []
            for each in found:
                shape = f"{each.vcpus} x {each.memory_mb} MiB" if each.type == "snapshot" else ""
                owner = "everybody's" if each.platform else "yours"
                rows.append(
                    {"name": each.name, "type": each.type, "whose": owner, "size_mib": each.size_bytes >> 20, "shape": shape, "made": ago(each.created_at)}
                )
            screen.table("Templates", rows)
        return 0

    try:
        return run(words, screen, work)
    except Refused as error:
        if error.code == "unreachable" and not words.remove and not words.url:
            return None
        raise


def keys(words: Namespace, screen: Screen) -> int:
    async def create(client: AsyncClient) -> int:
        expires = datetime.now(UTC) + timedelta(days=words.days) if words.days is not None else None
        made = await client.keys.create(words.key_name, scopes=words.scope, expires_at=expires)
        if words.json:
            screen.document(plain(made))
        else:
            if not words.quiet:
                screen.note(f"{made.id}; the key itself is shown this once:")
            lines([made.key])
        return 0

    async def show(client: AsyncClient) -> int:
        found = [each async for each in client.keys.list()]
        if words.json:
            screen.document({"keys": [plain(key) for key in found]})
        else:
            rows: list[dict[str, object]] = []
            for key in found:
                scopes = " ".join(key.scopes) or "everything"
                expires = plain(key.expires_at) if key.expires_at else "never"
                rows.append({"id": key.id, "name": key.name, "begins": key.key_prefix, "may": scopes, "expires": expires, "used": ago(key.last_used)})
            screen.table("Keys", rows)
        return 0

    async def revoke(client: AsyncClient) -> int:
        code, gone = 0, []
        for key_id in words.ids:
            try:
                await client.keys.revoke(key_id)
                gone.append(key_id)
            except ClientError as error:
                screen.error(Refused(error))
                code = FAILED
        if words.json:
            screen.document({"revoked": gone})
        else:
            lines(gone)
        return code

    return run(words, screen, {"create": create, "list": show, "revoke": revoke}[words.action])
