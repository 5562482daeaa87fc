"""benchmarks.scrapes notices every series that users or orders make, and lets a code pass that is new."""

from __future__ import annotations

import pytest

from benchmarks import scrapes
from benchmarks.scrapes import Read, Series, grown, series_of

CALL = {"grpc_service": "ordermesh.order.v1.OrderService", "grpc_method": "CreateOrder", "grpc_type": "unary"}


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


BEFORE = {
    series("grpc_server_handled_total", **CALL, grpc_code="OK"),
    series("grpc_server_handling_seconds_bucket", **CALL, le="0.1"),
    series("ordermesh_orders_settled_total", status="SUCCESS"),
    series("python_info", version="3.11.7"),
}


def test_the_series_of_an_exposition_are_its_names_with_their_labels() -> None:
    text = (
        "# TYPE a counter\n"
        'a_total{b="1",c="x"} 7\n'
        "# TYPE h histogram\n"
        'h_bucket{le="1.0"} 1\nh_bucket{le="+Inf"} 1\nh_count 1\nh_sum 0.5\n'
    )
    assert series_of(text) == {
        series("a_total", b="1", c="x"),
        series("h_bucket", le="1.0"),
        series("h_bucket", le="+Inf"),
        series("h_count"),
        series("h_sum"),
    }


@pytest.mark.parametrize(
    "came",
    [
        series("grpc_server_handled_total", **CALL, grpc_code="RESOURCE_EXHAUSTED"),
        series("ordermesh_refusals_total", reason="OVERLOADED"),
    ],
)
def test_a_code_or_reason_that_had_not_occurred_may_come(came: Series) -> None:
    assert grown(BEFORE, BEFORE | {came}) == []


@pytest.mark.parametrize(
    "came",
    [
        # With a user in a label, one that nobody registered among them, or in place of a code.
        series("grpc_server_handled_total", **CALL, grpc_code="OK", user_id="alice"),
        series("grpc_server_handled_total", **CALL, grpc_code="alice"),
        series("ordermesh_refusals_total", reason="alice"),
        series("ordermesh_refusals_total", reason="OVERLOADED", user="alice"),
        # Of a method that nobody had called, of a metric whose label sets are prepared, of nobody's metric.
        series("grpc_server_handled_total", **(CALL | {"grpc_method": "GetOrder"}), grpc_code="OK"),
        series("grpc_server_handling_seconds_bucket", **CALL, le="0.2"),
        series("ordermesh_orders_settled_total", status="FAILED"),
        series("orders_of_alice_total"),
    ],
)
def test_every_other_series_has_grown(came: Series) -> None:
    assert grown(BEFORE, BEFORE | {came}) == [came]


@pytest.mark.parametrize(("came", "well"), [("OVERLOADED", True), ("alice", False)])
def test_each_series_that_came_is_told_and_one_that_grew_is_the_end(
    capsys: pytest.CaptureFixture[str], came: str, well: bool
) -> None:
    after = BEFORE | {series("ordermesh_refusals_total", reason=came)}
    assert scrapes.tell({"gateway": Read(BEFORE)}, {"gateway": Read(after)}) is well
    said = capsys.readouterr().out
    assert said == f'{"a code" if well else "GREW"}: gateway: ordermesh_refusals_total{{reason="{came}"}}\n'


@pytest.mark.parametrize("well", [True, False])
def test_the_exit_code_says_whether_series_have_grown(monkeypatch: pytest.MonkeyPatch, well: bool) -> None:
    async def run(users: int, orders: int) -> bool:
        assert (users, orders) == (10_000, 100_000)
        return well

    monkeypatch.setattr(scrapes, "run", run)
    monkeypatch.setattr("sys.argv", ["scrapes"])
    if well:
        scrapes.main()
    else:
        with pytest.raises(SystemExit, match="1"):
            scrapes.main()
