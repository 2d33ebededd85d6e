"""Examples in the documentation, read out of it: whoever changes one there changes what the tests run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def client_program() -> str:
    """docs/client.md's examples as one program: the second one goes on with a sandbox such as the first one made."""
    (one, two) = [text for kind, text in blocks("docs/client.md") if kind == "python"]
    return f'{one}\nwith Client() as client, client.sandboxes.create("base") as sandbox:\n' + "".join(f"    {line}\n" for line in two.splitlines())


CLIENT_SAYS = "42\n\nstdout 0 hello\n\n0\n"
