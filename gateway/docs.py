"""`/docs`: the OpenAPI document as one page for people, with a curl line for each operation.

Rendered here, without scripts and without anything from elsewhere: it works offline and under a strict
content security policy. Everything shown comes from our own document and is escaped all the same.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import FastAPI

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h2{margin-top:2.5rem;border-top:1px solid #d8dee6;padding-top:1.5rem}
code,pre{font:14px/1.4 ui-monospace,monospace}
pre{background:#f3f5f8;padding:.8rem;overflow:auto;border-radius:6px}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #e8ecf1}
.m{background:#1d4f91;color:#fff;border-radius:4px;padding:.1rem .5rem;margin-right:.5rem}a{color:#1d4f91}
summary{cursor:pointer;margin:.6rem 0}
"""
_IN_PATH = re.compile(r"\{([a-z]+)_id\}")


def install(app: FastAPI) -> None:
    """Serve the page."""

    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"content-security-policy": _POLICY})

    app.add_api_route("/docs", docs, include_in_schema=False)


def page(document: Mapping[str, Any]) -> str:
    """The whole page of an OpenAPI document."""
    info = document["info"]
    paragraphs = "".join(f"<p>{_prose(part)}</p>" for part in info["description"].strip().split("\n\n"))
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])} API</title>"
        f"<style>{_STYLE}</style><h1>{escape(info['title'])} API {escape(info['version'])}</h1>{paragraphs}"
        f"<p>For machines: <a href=/openapi.json>/openapi.json</a>. A token for a local stack: "
        f"<code>TOKEN=$(ordermesh token --user alice)</code>. <code>$ORDER</code> and "
        f"<code>$STATEMENT</code> stand for ids that you were given.</p>"
        f"{operations}<h2>Models</h2>{schemas}</html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = [
        (
            parameter["name"],
            f"{parameter['in']}{', required' if parameter['required'] else ''}",
            _said(parameter),
        )
        for parameter in operation.get("parameters", ())
    ]
    answers = [
        (status, next(iter(answer.get("content", {"": None}))), answer["description"])
        for status, answer in operation["responses"].items()
    ]
    return (
        f"<h2 id={escape(operation['operationId'])}><span class=m>{escape(method.upper())}</span>"
        f"<code>{escape(path)}</code></h2><p>{_prose(operation.get('description', ''))}</p>"
        f"<pre>{escape(_curl(method, path, operation))}</pre>{_table(parameters)}"
        f"<details><summary>Answers</summary>{_table(answers)}</details>"
    )


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """A line for a shell that has TOKEN, and the ids in the path by name: ORDER, STATEMENT."""
    how = "-iN" if path.endswith("/events") else "-i"
    if "302" in operation["responses"]:
        # What is at the end of it is a file; the token stays here.
        how = "-fLOJ"
    if method != "get":
        how += f" -X {method.upper()}"
    url = "http://127.0.0.1:8400" + _IN_PATH.sub(lambda found: f"${found[1].upper()}", path)
    lines = [f'curl {how} {url} -H "Authorization: Bearer $TOKEN"']
    heads = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
    if "idempotency-key" in heads:
        lines.append('-H "Idempotency-Key: $(uuidgen)"' + (" -H 'Prefer: wait=10'" * ("prefer" in heads)))
    if body := operation.get("requestBody"):
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d '{json.dumps(body['content']['application/json']['example'])}'")
    return " \\\n  ".join(lines)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (field, _type(facts) + (", required" if field in required else ""), _said(facts))
        for field, facts in schema.get("properties", {}).items()
    ]
    return (
        f"<details id=model-{escape(name)}><summary><code>{escape(name)}</code> "
        f"{_prose(schema.get('description', ''))}</summary>{_table(rows)}</details>"
    )


def _type(facts: Mapping[str, Any]) -> str:
    if "$ref" in facts:
        return str(facts["$ref"]).rpartition("/")[2]
    if "anyOf" in facts:
        return " or ".join(_type(one) for one in facts["anyOf"] if one.get("type") != "null")
    if "enum" in facts:
        return " | ".join(facts["enum"])
    if facts.get("type") == "array":
        return f"list of {_type(facts['items'])}"
    return str(facts.get("format") or facts.get("type", "any"))


def _said(facts: Mapping[str, Any]) -> str:
    return str(facts.get("description", ""))


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(first)}</code><td>{escape(second)}<td>{_prose(third)}"
        for first, second, third in rows
    )
    return f"<table>{cells}</table>" if cells else ""


def _prose(text: str) -> str:
    """Escaped text, with what stands between back-ticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
