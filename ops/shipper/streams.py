"""The data streams that lines and spans go to, made from the files in deploy/elasticsearch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx

from ops import places
from ops.errors import OpsError

if TYPE_CHECKING:
    from pathlib import Path

LOGS = "logs-ordermesh-default"
TRACES = "traces-ordermesh-default"
_TEMPLATES = {LOGS: "logs-ordermesh", TRACES: "traces-ordermesh"}


def short(stream: str) -> str:
    """What a stream is called in metrics: `logs` or `traces`."""
    return stream.partition("-")[0]


def template_files() -> dict[str, Path]:
    """The index template of each data stream, by the template's name."""
    directory = places.deploy_dir() / "elasticsearch"
    return {name: directory / f"{name}.json" for name in _TEMPLATES.values()}


async def install(http: httpx.AsyncClient) -> None:
    """Put the templates as they are in the files; the first line makes the stream. Idempotent.

    Raises: httpx.HTTPError while Elasticsearch is away; OpsError when it refuses a template.
    """
    for name, path in template_files().items():
        answer = await http.put(f"/_index_template/{name}", json=json.loads(path.read_text(encoding="utf-8")))
        _check(answer, f"the template {path}")


def _check(answer: httpx.Response, what: str) -> None:
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
        answer.raise_for_status()
    if answer.is_error:
        raise OpsError(f"Elasticsearch refuses {what}: {answer.text[:500]}")
