"""The stack's ports: chosen once, the same after a restart, and a clear word when a fixed one is taken."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import ports
from ops.errors import OpsError, PortBusy


@pytest.fixture
def taken() -> Iterator[int]:
    port = ports.free_port()
    with socket.create_server((ports.HOST, port)):
        yield port


def test_a_name_keeps_its_port_over_restarts_and_shares_it_with_nobody(tmp_path: Path) -> None:
    book = ports.PortBook.open(tmp_path)
    chosen = {name: book.port_of(name) for name in ("order_svc.s1", "order_svc.s2", "gateway.admin")}
    assert len(set(chosen.values())) == 3
    again = ports.PortBook.open(tmp_path)
    assert {name: again.port_of(name) for name in chosen} == chosen


def test_a_kept_port_that_was_taken_meanwhile_is_chosen_anew(tmp_path: Path, taken: int) -> None:
    book = ports.PortBook(tmp_path / "ports.json", {"issuer": taken})
    assert book.renew_busy() == ["issuer"]
    assert book.port_of("issuer") != taken


def test_a_port_someone_listens_on_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)


def test_the_edge_lies_at_fixed_distances_from_its_base_or_anywhere_for_zero(tmp_path: Path) -> None:
    book = ports.PortBook.open(tmp_path)
    base = next(b for b in range(21_000, 30_000) if all(map(ports.is_free, (b, b + 43, b + 1000))))
    assert book.edge(base) == ports.EdgePorts(plain=base, mtls=base + 43, rest=base + 1000)
    anywhere = book.edge(0)
    assert ports.PortBook.open(tmp_path).edge(0) == anywhere


def test_a_busy_fixed_port_is_named_together_with_the_flag(tmp_path: Path, taken: int) -> None:
    with pytest.raises(PortBusy, match=rf"Port {taken} \(gRPC\) is busy.*--port-base"):
        ports.PortBook.open(tmp_path).edge(taken)


@pytest.mark.parametrize("base", [80, 65_000, -1])
def test_a_base_out_of_range_is_refused(tmp_path: Path, base: int) -> None:
    with pytest.raises(OpsError, match="--port-base"):
        ports.PortBook.open(tmp_path).edge(base)


def test_a_damaged_book_says_so(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")
    with pytest.raises(OpsError, match="damaged"):
        ports.PortBook.open(tmp_path)
