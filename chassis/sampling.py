"""Which spans are recorded: what somebody asked for, what belongs to such a trace, a share of the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import get_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import SpanKind

from chassis.traces import SAMPLED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, TraceState
    from opentelemetry.util.types import Attributes


class Wanted(Sampler):
    """Follows the parent; without one, samples `ratio` of the calls and nothing that a loop does by itself.

    A context with `SAMPLED` is recorded in any case, and nothing is when nobody exports it.
    """

    def __init__(self, ratio: float, *, exported: bool) -> None:
        self._ratio = ratio
        self._exported = exported
        self._by_ratio = TraceIdRatioBased(ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """As of the SDK's Sampler."""
        parent = trace.get_current_span(parent_context).get_span_context()
        if self._is_wanted(parent_context, parent, trace_id, kind):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, parent.trace_state)
        return SamplingResult(Decision.DROP, None, parent.trace_state)

    def _is_wanted(
        self, context: Context | None, parent: trace.SpanContext, trace_id: int, kind: SpanKind | None
    ) -> bool:
        if not self._exported:
            return False
        if get_value(SAMPLED, context):
            return True
        if parent.is_valid:
            return parent.trace_flags.sampled
        return kind is SpanKind.SERVER and self._by_ratio.should_sample(None, trace_id, "").decision is (
            Decision.RECORD_AND_SAMPLE
        )

    def get_description(self) -> str:
        """As of the SDK's Sampler."""
        return f"Wanted{{{self._ratio}}}"
