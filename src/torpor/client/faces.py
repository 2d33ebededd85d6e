"""Makes `synchronous.py` from the asynchronous classes: the same methods, arguments and words, each run on the client's own loop.

    python -m torpor.client.faces > made.py && mv made.py src/torpor/client/synchronous.py      (it imports the file that it replaces)

A test holds that the file is what this makes, so that there is one client and no twin. The rules:

    async def f() -> T             def f() -> T                  T itself, when it is one of these classes, as its plain counterpart; so in lists
    an async iterator of T         an iterator of T
    `async with`                   `with`
    a function among the arguments is called in the caller's thread
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from torpor.client.asynchronous import AsyncClient
from torpor.client.commands import AsyncCommands, AsyncProcess
from torpor.client.events import AsyncEvents
from torpor.client.files import AsyncFiles, AsyncWatch
from torpor.client.sandboxes import AsyncSandbox, AsyncSandboxes
from torpor.client.team import AsyncAudit, AsyncKeys, AsyncTemplates
from torpor.client.terminals import AsyncTerminal, AsyncTerminals

CLASSES: tuple[type, ...] = (
    AsyncClient,
    AsyncSandboxes,
    AsyncSandbox,
    AsyncCommands,
    AsyncProcess,
    AsyncTerminals,
    AsyncTerminal,
    AsyncFiles,
    AsyncWatch,
    AsyncTemplates,
    AsyncKeys,
    AsyncAudit,
    AsyncEvents,
)
_NAMES = {each.__name__ for each in CLASSES}
_CALLBACKS = ("OnOutput", "OnBytes")
_WITHIN = ("begin", "pieces")
"""Public among the asynchronous classes only."""

_HEAD = '''"""The client for programs without an event loop. Made from the asynchronous classes by `python -m torpor.client.faces`: not to be edited."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from torpor.client import asynchronous, commands, events, files, sandboxes, team, terminals
from torpor.client.answers import (
    AuditEntry,
    Background,
    Event,
    Exit,
    FileChange,
    FileState,
    Key,
    MetricPoint,
    Output,
    PortAddress,
    ProcessState,
    Result,
    SandboxState,
    Template,
)
from torpor.client.asynchronous import RETRIES
from torpor.client.attachment import PATIENCE
from torpor.client.commands import Command, Input, OnOutput
from torpor.client.files import Bytes
from torpor.client.portal import Call, Portal
from torpor.client.sandboxes import WAIT, Range
from torpor.client.trees import Left, OnBytes
'''
_CONSTANTS = {"60.0": "PATIENCE", "300.0": "WAIT", "4": "RETRIES"}


def source() -> str:
    """The whole module."""
    return _HEAD + "".join(_face(each) for each in CLASSES)


def _plain(text: str) -> str:
    """An annotation or a docstring as the plain side has it."""
    return re.sub(r"\bAsync(?=[A-Z])", "", text)


def _face(kind: type) -> str:
    name, module = kind.__name__, kind.__module__.rpartition(".")[2]
    lines = ["", "", f"class {_plain(name)}:", *_doc(kind, 4)]
    if kind is AsyncClient:
        lines += ["", *_constructor()]
    else:
        lines += [
            "",
            f"    def __init__(self, portal: Portal, inner: {module}.{name}) -> None:",
            "        self._portal = portal",
            "        self._inner = inner",
        ]
    for member_name, member in _members(kind):
        lines += ["", *_member(kind, member_name, member)]
    return "\n".join(lines) + "\n"


def _constructor() -> list[str]:
    signature = inspect.signature(AsyncClient.__init__)
    return [
        f"    def __init__({_parameters(signature)}) -> None:",
        f"        self._inner = asynchronous.AsyncClient({_arguments(signature)})",
        "        self._portal = Portal()",
    ]


def _members(kind: type) -> list[tuple[str, Any]]:
    """The public ones and those of a context, inherited ones last, each once."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        for name, member in vars(base).items():
            wanted = not name.startswith("_") or name in ("__aenter__", "__repr__")
            if wanted and name not in (*found, *_WITHIN) and base is not object and (inspect.isfunction(member) or isinstance(member, property)):
                found[name] = member
    return list(found.items())


def _member(kind: type, name: str, member: Any) -> list[str]:
    if isinstance(member, property):
        assert member.fget is not None
        returns = _returns(member.fget)
        return ["    @property", f"    def {name}(self) -> {_plain(returns)}:", *_doc(member, 8), f"        return {_wrapped(returns, f'self._inner.{name}')}"]
    if name == "__repr__":
        return ["    def __repr__(self) -> str:", "        return repr(self._inner).replace('<Async', '<', 1)"]
    if name == "__aenter__":
        leaving = "self.close()" if kind is AsyncClient else "self._portal.run(self._inner.__aexit__())"
        return ["    def __enter__(self) -> Self:", "        return self", "", "    def __exit__(self, *_: object) -> None:", f"        {leaving}"]
    signature, returns = inspect.signature(member), _returns(member)
    head = [f"    def {name}({_parameters(signature)}) -> {_plain(returns)}:", *_doc(member, 8)]
    callbacks = [each.name for each in signature.parameters.values() if any(word in str(each.annotation) for word in _CALLBACKS)]
    given = f"self._inner.{name}({_arguments(signature, callbacks)})"
    if returns.startswith("AsyncIterator["):
        item = returns.removeprefix("AsyncIterator[").removesuffix("]")
        if item in _NAMES:
            return [*head, f"        for each in self._portal.iterate({given}):", f"            yield {_wrapped(item, 'each')}"]
        return [*head, f"        return self._portal.iterate({given})"]
    if callbacks:
        body = ["        call = Call(self._portal)"]
        run = f"call.run({given})"
    else:
        body, run = [], f"self._portal.run({given})"
    if kind is AsyncClient and name == "close":
        return [*head, "        if self._portal.open:", f"            {run}", "            self._portal.close()"]
    body.append(f"        {run}" if returns == "None" else f"        return {_wrapped(returns, run)}")
    return [*head, *body]


def _returns(function: Any) -> str:
    return str(function.__annotations__["return"])


def _wrapped(returns: str, value: str) -> str:
    if returns in _NAMES:
        return f"{_plain(returns)}(self._portal, {value})"
    inner = returns.removeprefix("list[").removesuffix("]")
    if inner in _NAMES:
        return f"[{_plain(inner)}(self._portal, each) for each in {value}]"
    return value


def _parameters(signature: inspect.Signature) -> str:
    words, star = [], False
    for each in signature.parameters.values():
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        word = each.name if each.name == "self" else f"{each.name}: {_annotation(each.annotation)}"
        words.append(word if each.default is inspect.Parameter.empty else f"{word} = {_default(each)}")
    return ", ".join(words)


def _annotation(text: str) -> str:
    return _plain(str(text))


def _default(each: inspect.Parameter) -> str:
    text = repr(each.default)
    return _CONSTANTS.get(text, text) if each.name in ("reattach", "wait", "retries") else text


def _arguments(signature: inspect.Signature, callbacks: list[str] | None = None) -> str:
    words = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        value = f"call.here({each.name})" if each.name in (callbacks or ()) else each.name
        words.append(f"{each.name}={value}" if each.kind is inspect.Parameter.KEYWORD_ONLY else value)
    return ", ".join(words)


def _doc(member: Any, indent: int) -> list[str]:
    text = inspect.getdoc(member) if not isinstance(member, type) else inspect.cleandoc(member.__doc__ or "")
    if not text:
        return []
    first, *rest = _plain(text).split("\n")
    space = " " * indent
    lines = [f'{space}"""{first}', *(f"{space}{line}" if line else "" for line in rest)]
    if len(lines) == 1:
        return [f'{lines[0]}"""']
    return [*lines[:-1], f'{lines[-1]}"""'] if "\n" in text and rest[-1:] != [""] and not isinstance(member, type) else [*lines, f'{space}"""']


if __name__ == "__main__":
    sys.stdout.write(source())
