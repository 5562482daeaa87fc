"""The handlers of HistoryService: proto -> shards -> merge -> proto."""

from __future__ import annotations

from typing import TYPE_CHECKING

from history_svc import page, wire
from history_svc.metrics import PAGES, SHARDS_OF_A_PAGE_MAX
from history_svc.placement import placement_of

if TYPE_CHECKING:
    from chassis import rpc
    from chassis.tokens import PageTokens
    from history_svc.store import Shards
    from ordermesh.history.v1 import history_service_pb2 as pb


class HistoryService:
    """Implements ordermesh.history.v1.HistoryService."""

    def __init__(self, shards: Shards, tokens: PageTokens) -> None:
        self._shards = shards
        self._tokens = tokens

    async def ListOrders(self, request: pb.ListOrdersRequest, call: rpc.Call) -> pb.ListOrdersResponse:
        """List one page; primaries are read, so every consistency token is satisfied."""
        ask = wire.ask(request)
        call.subject.must_own(ask.user_id)
        placement = placement_of(call.metadata)
        after = page.unpack(self._tokens.open(ask.page_token, ask.query)) if ask.page_token else None
        sources = await self._shards.read(
            placement, ask.window(after), limit=ask.page_size + 1, timeout_s=call.time_remaining()
        )
        merged = page.merge(sources, ask.page_size)
        PAGES.labels(min(len(placement), SHARDS_OF_A_PAGE_MAX)).inc()
        return wire.listed(merged, self._next_token(merged.next_after, ask.query), placement)

    def _next_token(self, after: page.Key | None, query: str) -> str:
        return self._tokens.seal(page.pack(after), query) if after is not None else ""
