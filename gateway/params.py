"""What the routes have in common of what they are asked for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query

PAGE_TOKEN_CHARS_MAX = 512

PageSize = Annotated[int | None, Query(alias="pageSize", ge=1, le=100, description="At most so many.")]
PageToken = Annotated[
    str | None, Query(alias="pageToken", max_length=PAGE_TOKEN_CHARS_MAX, description="From the page before.")
]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        description="A UUID, made before the first try, the same for each.",
        json_schema_extra={"format": "uuid"},
    ),
]
