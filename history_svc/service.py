"""The handlers of HistoryService: proto -> reader -> proto."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis.placement import placement_of
from history_svc import page, wire
from history_svc.explain import explained
from history_svc.metrics import PAGES, SHORT_PAGES

if TYPE_CHECKING:
    from chassis import rpc
    from chassis.clock import Clock
    from chassis.tokens import PageTokens
    from history_svc.explain import Explainer
    from history_svc.finder import Finder
    from history_svc.reader import Reader
    from ordermesh.history.v1 import history_service_pb2 as pb

SHARDS_OF_A_PAGE_MAX = 4
"""Label values stop here; more shards count as this many."""


class HistoryService:
    """Implements ordermesh.history.v1.HistoryService."""

    def __init__(
        self, reader: Reader, finder: Finder, explainer: Explainer, tokens: PageTokens, clock: Clock
    ) -> None:
        self._reader = reader
        self._finder = finder
        self._explainer = explainer
        self._tokens = tokens
        self._clock = clock

    async def ListOrders(self, request: pb.ListOrdersRequest, call: rpc.Call) -> pb.ListOrdersResponse:
        """List one page of a user's orders."""
        ask = wire.ask(request)
        call.subject.must_own(request.user_id)
        placement = placement_of(call.metadata)
        served = await self._reader.read(
            placement, ask.wish(self._after(ask)), now=self._clock.now(), timeout_s=call.time_remaining()
        )
        PAGES.labels(min(len(placement), SHARDS_OF_A_PAGE_MAX), served.served_by.value).inc()
        if served.page.next_after is not None and len(served.page.rows) < ask.page_size:
            SHORT_PAGES.inc()
        return wire.listed(served, self._next_token(served.page.next_after, ask), self._clock.now())

    async def SearchOrders(self, request: pb.SearchOrdersRequest, call: rpc.Call) -> pb.SearchOrdersResponse:
        """Search the orders of all users in the read model."""
        ask = wire.ask_all(request)
        found = await self._finder.find(
            ask.window(self._after(ask)), ask.page_size, timeout_s=call.time_remaining()
        )
        token = self._next_token(found.page.next_after, ask)
        return wire.found(found, token, self._clock.now())

    async def ExplainPage(self, request: pb.ExplainPageRequest, call: rpc.Call) -> pb.ExplainPageResponse:
        """Say how a user's first page is put together."""
        user_id = wire.user(request.user_id)
        placement = placement_of(call.metadata)
        facts = await self._explainer.explain(
            placement, user_id, now=self._clock.now(), timeout_s=call.time_remaining()
        )
        return explained(facts, placement, self._clock.now())

    def _after(self, ask: wire.Ask) -> page.Key | None:
        return page.unpack(self._tokens.open(ask.page_token, ask.query)) if ask.page_token else None

    def _next_token(self, after: page.Key | None, ask: wire.Ask) -> str:
        return self._tokens.seal(page.pack(after), ask.query) if after is not None else ""
