"""The documentation page: the OpenAPI file as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

Tree = dict[str, Any]
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}code,pre{font:13px/1.4 ui-monospace,monospace}
pre{background:#f6f6f4;padding:.6rem;overflow:auto}details{border-bottom:1px solid #ddd;padding:.4rem 0}summary{cursor:pointer}h2{margin-top:2.5rem}
.m{display:inline-block;width:4.5rem;font-weight:600}td{padding:.1rem .8rem .1rem 0;vertical-align:top}.s{color:#666}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e4e4e0}pre{background:#222}details{border-color:#333}.s{color:#999}}"""


def page(document: Tree) -> str:
    """One self-contained page."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"]
    parts += [f"<p>{escape(text)}</p>" for text in document["info"]["description"].split("\n\n")]
    parts.append('<p><a href="/openapi.json">openapi.json</a></p>')
    tags: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault((operation.get("tags") or ["other"])[0], []).append(_operation(path, method, operation, document))
    for tag, shown in tags.items():
        parts += [f"<h2>{escape(tag)}</h2>", *shown]
    return "".join(parts)


def _operation(path: str, method: str, operation: Tree, document: Tree) -> str:
    lines = [
        f"<details><summary><code><span class=m>{method.upper()}</span>{escape(path)}</code></summary>",
        f"<p>{escape(operation.get('description', ''))}</p>",
    ]
    if "x-scope" in operation:
        who = "an administrator" if operation.get("x-admin") else "a login" if operation.get("x-user") else "a key or a login"
        lines.append(f"<p class=s>Needs {who} with the scope <code>{escape(operation['x-scope'])}</code>.</p>")
    for parameter in operation.get("parameters", []):
        lines.append(f"<p><code>{escape(parameter['name'])}</code> <span class=s>in {parameter['in']}</span> {escape(parameter.get('description', ''))}</p>")
    body = operation.get("requestBody", {}).get("content", {})
    for kind, content in body.items():
        lines.append(f"<p class=s>Body, {escape(kind)}:</p>{_schema(content.get('schema', {}), document)}")
    for status, response in operation["responses"].items():
        shown = "" if status >= "400" else "".join(_schema(c.get("schema", {}), document) for c in response.get("content", {}).values())
        lines.append(f"<p><code>{status}</code> {escape(response.get('description', ''))}</p>{shown}")
    return "".join([*lines, "</details>"])


def _schema(schema: Tree, document: Tree) -> str:
    lines = "\n".join(_lines(schema, document, "", 0))
    return f"<pre>{escape(lines)}</pre>" if lines else ""


def _lines(schema: Tree, document: Tree, indent: str, depth: int) -> Iterator[str]:
    """Properties one a line, as deep as three levels."""
    schema = _resolved(schema, document)
    if schema.get("type") == "array":
        yield f"{indent}array of"
        yield from _lines(schema.get("items", {}), document, indent + "  ", depth + 1)
        return
    if "properties" not in schema or depth > 3:
        yield indent + _kind(schema, document)
        return
    for name, inner in schema["properties"].items():
        required = " (required)" if name in schema.get("required", []) else ""
        about = f"  - {inner['description']}" if "description" in inner else ""
        yield f"{indent}{name}: {_kind(_resolved(inner, document), document)}{required}{about}"


def _resolved(schema: Tree, document: Tree) -> Tree:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _kind(schema: Tree, document: Tree) -> str:
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_kind(_resolved(each, document), document) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_kind(_resolved(schema.get('items', {}), document), document)}"
    return str(schema.get("title" if "properties" in schema else "type", "anything"))
