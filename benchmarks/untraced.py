"""Run a service without spans, as if nobody had written them: what the others are compared with.

BENCH_MODULE=order_svc python -m benchmarks.untraced
"""

from __future__ import annotations

import os
import runpy
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import INVALID_SPAN

from chassis import store_spans, traces

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _no_span(*_: Any, **__: Any) -> Iterator[Any]:
    yield INVALID_SPAN


def main() -> None:
    for name in ("server_span", "client_span", "work_span", "linked_span"):
        setattr(traces, name, _no_span)
    for name in ("begun_span", "begun_work"):
        setattr(traces, name, lambda *_, **__: INVALID_SPAN)
    traces.traceparent = traces.trace_id = lambda: ""
    traces.failed = lambda *_: None
    store_spans.traced = lambda store: store
    store_spans.tell = lambda *_: None
    module = os.environ["BENCH_MODULE"]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
