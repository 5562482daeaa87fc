"""`/statements/{id}`: where the mail of a statement leads when nobody has built a page for it.

It says how to fetch the file and shows nothing of it, so it needs no login: who has no token gets no further.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse

from chassis.ids import parse_uuid

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH: Final = "/statements/{statement_id}"
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_PAGE: Final = """<!doctype html><html lang=en><meta charset=utf-8><title>Your statement</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
pre{font:14px/1.4 ui-monospace,monospace;background:#f3f5f8;padding:.8rem;overflow:auto}
</style>
<h1>Your statement</h1>
<p>Log in to the app to look at it and to download it. It is not kept for ever; when it is gone, ask anew.</p>
<p>With a token of yours, <code>TOKEN=$(ordermesh token --user alice)</code> on a local stack, and
<code>GATEWAY</code> as this page's address up to its port, this shows where it stands, and fetches it:</p>
<pre>LINES</pre>
<p>All there is to ask is described <a href=/docs>here</a>.</p></html>
"""
_LINES: Final = """curl -i $GATEWAY/v1/statements/{known} -H "Authorization: Bearer $TOKEN"
curl -fLOJ $GATEWAY/v1/statements/{known}/download -H "Authorization: Bearer $TOKEN"
"""


def install(app: FastAPI) -> None:
    """Serve the page, of whatever id: whether there is such a statement is told to its user alone."""

    async def landing(statement_id: str) -> HTMLResponse:
        known = parse_uuid(statement_id, field_name="statementId")
        page = _PAGE.replace("LINES", escape(_LINES.format(known=known), quote=False))
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    app.add_api_route(PATH, landing, include_in_schema=False)
