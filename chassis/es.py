"""Elasticsearch over its own async driver: one client, no hidden retries, every call with a deadline, two
typed errors.

The driver would try again by itself, at once and without a pause between; who calls knows better. What is not
an answer is EsUnavailable; what is a refusal of this very request is EsRefused.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import elastic_transport
import elasticsearch
import orjson
import structlog
from elasticsearch.serializer import CompatibilityModeJsonSerializer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

log = structlog.get_logger("es")
CALL_TIMEOUT_S = 10.0
NEVER_S = 600.0
"""The driver's own timeout, beyond that of every call: each call has its deadline from us. To give the driver
another one makes a new client, which took 0.3 ms of every request.
"""
REASON_CHARS_MAX = 300
"""A reason quotes the document; a little of it is enough to find the mistake."""
_JSON = "application/vnd.elasticsearch+json; compatible-with=8"
_NDJSON = "application/vnd.elasticsearch+x-ndjson; compatible-with=8"


class EsUnavailable(Exception):
    """Elasticsearch did not answer in time, or said that it cannot now."""


class EsRefused(Exception):
    """Elasticsearch refuses this request as it is."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(f"{status} {kind}: {reason}")
        self.status = status
        self.kind = kind
        self.reason = reason


class EsSettings(BaseModel):
    """One cluster."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    addresses: tuple[str, ...] = Field(description="http:// or https:// addresses of its nodes.")
    api_key: SecretStr = Field(SecretStr(""), description="Key of Elasticsearch; none when empty.")
    username: str = Field("", description="Whom we log in as instead; empty: nobody.")
    password: SecretStr = Field(SecretStr(""), description="That user's password.")
    ca_file: Path | None = Field(None, description="Whom to trust for https, when not the system's list.")
    connections: int = Field(8, ge=1, le=64, description="Connections to each node.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.username) != bool(self.password.get_secret_value()):
            raise ValueError("a user name and a password belong together")
        if self.username and self.api_key.get_secret_value():
            raise ValueError("a key or a user name, not both")
        if any("@" in address for address in self.addresses):
            raise ValueError("addresses hold no user and no password, since they are shown and logged")
        is_secret = self.username or self.api_key.get_secret_value()
        if is_secret and not all(address.startswith("https://") for address in self.addresses):
            raise ValueError("keys and passwords are sent by https only")
        return self

    def options(self) -> dict[str, Any]:
        """What the client is made with."""
        options: dict[str, Any] = {"connections_per_node": self.connections}
        if self.api_key.get_secret_value():
            options["api_key"] = self.api_key.get_secret_value()
        if self.username:
            options["basic_auth"] = (self.username, self.password.get_secret_value())
        if self.ca_file is not None:
            options["ca_certs"] = str(self.ca_file)
        return options


class _Orjson(CompatibilityModeJsonSerializer):
    """JSON of answers; of 1000 items it takes a third of the standard library's time."""

    def loads(self, data: bytes) -> Any:
        return orjson.loads(data)


class Elastic:
    """One cluster. Safe to use by many tasks."""

    def __init__(self, client: elasticsearch.AsyncElasticsearch) -> None:
        self._client = client.options(request_timeout=NEVER_S)

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """One request with JSON; the answer's JSON.

        If cancelled here, or when it raises EsUnavailable: it may have been done.
        Raises: EsUnavailable, EsRefused.
        """
        headers = {"accept": _JSON}
        if body is not None:
            headers["content-type"] = _JSON
        return await self._request(method, path, params, headers, body, timeout_s)

    async def bulk(
        self, lines: bytes, *, params: Mapping[str, str] | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """One bulk request of lines that are JSON already.

        If cancelled here, or when it raises EsUnavailable: any part of it may have been done.
        Raises: EsUnavailable, EsRefused.
        """
        headers = {"accept": _JSON, "content-type": _NDJSON}
        return await self._request("POST", "/_bulk", params, headers, lines, timeout_s)

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: object,
        timeout_s: float,
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.perform_request(
                    method, path, params=params, headers=headers, body=body
                )
        except TimeoutError as late:
            raise EsUnavailable(f"no answer in {timeout_s:g} s") from late
        except elasticsearch.ApiError as refused:
            raise _typed(refused) from refused
        except elastic_transport.TransportError as broken:
            log.warning("elasticsearch_unreachable", error=type(broken).__name__)
            raise EsUnavailable(type(broken).__name__) from broken
        found: dict[str, Any] = answer.body
        return found


@asynccontextmanager
async def open_elastic(settings: EsSettings) -> AsyncIterator[Elastic]:
    """A client that lives as long as the context; it connects when first needed."""
    client = elasticsearch.AsyncElasticsearch(
        list(settings.addresses),
        max_retries=0,
        retry_on_timeout=False,
        serializers={"application/vnd.elasticsearch+json": _Orjson()},
        **settings.options(),
    )
    try:
        yield Elastic(client)
    finally:
        await client.close()


def names_in_path(names: Sequence[str]) -> str:
    """Names of indices as a part of a path."""
    return ",".join(quote(name, safe="") for name in names)


def _typed(refused: elasticsearch.ApiError) -> EsUnavailable | EsRefused:
    kind, reason = _why(refused.body)
    status = refused.meta.status
    if status >= 500 or status in (408, 429):
        log.warning("elasticsearch_unavailable", status=status, kind=kind)
        return EsUnavailable(f"{status} {kind}")
    return EsRefused(status, kind, reason)


def _why(body: Any) -> tuple[str, str]:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "unknown", str(body)[:REASON_CHARS_MAX]
    return str(error.get("type")), str(error.get("reason"))[:REASON_CHARS_MAX]
