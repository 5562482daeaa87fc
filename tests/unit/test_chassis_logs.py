"""Lines: ECS JSON, one object a line whatever a caller sends, and no person in them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosmtplib
import grpc
import pydantic
import pytest
from time_machine import travel

from chassis import logs
from chassis.logs import Lines
from chassis.mail import NotSent
from chassis.supervise import LoopDied
from chassis.tracebacks import OURS, stack_trace
from tests.tidy.tree import SHIPPED

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
KEY = b"a key of the tests"

PROGRAM = """
import asyncio
import logging
import warnings
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from chassis import logs, traces

exporter = InMemorySpanExporter()
logs.configure("order_svc", facts={"shard": "s1"}, hash_key=b"k")
traces.configure("order_svc", facts={"shard": "s1"}, exporter=exporter, ratio=1.0)
log = structlog.get_logger("test")
parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

with traces.server_span("/ordermesh.order.v1.OrderService/GetOrder", parent):
    logs.bind(order_id="01890a5d-ac96-774b-bcce-b302099a8057")
    log.info("order_placed", attempt=1)
    logging.getLogger("driver.of.somebody").warning("connection %s lost\\nINFO all is well", 7)
try:
    raise ValueError("two\\nlines")
except ValueError as wrong:
    log.error("call_failed", exc_info=wrong)
    logging.getLogger("driver").exception("it broke")
warnings.warn("soon gone", DeprecationWarning)
log.debug("probe_answered")

async def call(order_id):
    logs.bind(order_id=order_id)
    await asyncio.sleep(0)
    log.info("order_watched", expected=order_id)

async def calls():
    await asyncio.gather(*(asyncio.create_task(call(str(number))) for number in range(5)))

asyncio.run(calls())
traces.flush()
log.info("flushed", spans=[format(span.context.span_id, "016x") for span in exporter.get_finished_spans()])
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What a process that uses the chassis's logs writes to its standard output."""
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def named(lines: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["message"] == message]


def test_a_line_is_ecs_json_and_says_service_shard_order_and_trace(lines: list[dict[str, Any]]) -> None:
    (line,) = named(lines, "order_placed")
    assert list(line)[:5] == ["@timestamp", "log.level", "message", "ecs.version", "event.action"]
    assert datetime.fromisoformat(line["@timestamp"]).tzinfo is not None
    wanted = {
        "log.level": "info",
        "event.action": "order_placed",
        "service.name": "order_svc",
        "shard": "s1",
        "order_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "trace.id": TRACE_ID,
        "attempt": 1,
    }
    assert {name: line[name] for name in wanted} == wanted
    assert line["service.version"]
    assert line["service.node.name"]


def test_spans_that_wait_are_handed_over_at_stop_and_lines_lead_to_them(lines: list[dict[str, Any]]) -> None:
    (line,), (flushed,) = named(lines, "order_placed"), named(lines, "flushed")
    assert flushed["spans"] == [line["span.id"]]


def test_a_trace_back_stays_on_its_line(lines: list[dict[str, Any]]) -> None:
    (line,) = named(lines, "call_failed")
    assert line["error.type"] == "ValueError"
    first, *_, last = line["error.stack_trace"].splitlines()
    assert first.startswith('  File "<string>", line ')
    assert last == "ValueError", "what it quotes stays inside"


def test_what_libraries_say_has_the_same_form(lines: list[dict[str, Any]]) -> None:
    said = [line for line in lines if line["event.action"] == logs.LIBRARY_SAID]
    lost, broke, warned = said
    assert lost["message"] == "connection %s lost", "nothing that was filled in, and one line"
    assert (lost["log.logger"], lost["log.level"]) == ("driver.of.somebody", "warning")
    assert (lost["service.name"], lost["trace.id"]) == ("order_svc", TRACE_ID)
    assert (broke["log.level"], broke["error.type"]) == ("error", "ValueError")
    assert "soon gone" in warned["message"]


def test_less_severe_lines_are_not_written(lines: list[dict[str, Any]]) -> None:
    assert named(lines, "probe_answered") == []


def test_facts_of_one_call_do_not_reach_the_lines_of_another(lines: list[dict[str, Any]]) -> None:
    watched = named(lines, "order_watched")
    assert len(watched) == 5
    assert all(line["order_id"] == line["expected"] for line in watched)


def rendered(**facts: Any) -> bytes:
    return told_with(KEY, **facts)


def told_with(key: bytes | None, **facts: Any) -> bytes:
    return logs.Lines({"service.name": "gateway"}, key)(None, "info", {"event": "said", **facts})


@travel(datetime(2026, 9, 1, 12, 30, 15, 123_456, tzinfo=UTC), tick=False)
def test_the_line_of_a_call_is_this_to_the_byte() -> None:
    line = rendered(
        event="rpc_finished",
        **{"event.outcome": "success", "event.duration": 1_250_000, "rpc.method": "a.B/C", "rpc.code": "OK"},
        user_id="alice",
        order_id=UUID("01890a5d-ac96-774b-bcce-b302099a8057"),
    )
    assert line == (
        b'{"@timestamp":"2026-09-01T12:30:15.123456Z","log.level":"info","message":"rpc_finished",'
        b'"ecs.version":"8.11.0","event.action":"rpc_finished","service.name":"gateway",'
        b'"event.outcome":"success","event.duration":1250000,"rpc.method":"a.B/C","rpc.code":"OK",'
        b'"user.hash":"' + logs.user_hash(KEY, "alice").encode() + b'",'
        b'"order_id":"01890a5d-ac96-774b-bcce-b302099a8057"}'
    )


RUBBISH = [
    "a\nb",
    '"}\n{"log.level":"error","message":"forged"}',
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "right \u202e to left",
    "zero \u200b width",
    "line \u2028 separator",
    "half \ud800 a character",
    "\x00",
    "\U000e0041 tag",
    "x" * 1_000_000,
    "\n" * 100_000,
    b"\xff\n",
    2**200,
    float("nan"),
    [["deep"]] * 1000,
    {"a": {"b": {"c": {"d": {"e": "deep"}}}}},
    {str(number): "x" * 5000 for number in range(1000)},
    object(),
    ValueError("secret"),
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
@pytest.mark.parametrize("where", ["event", "value", "in a list", "in a dict", "as a name"])
def test_whatever_is_said_is_one_short_line_that_moves_no_cursor(rubbish: Any, where: str) -> None:
    facts: dict[str, dict[str, Any]] = {
        "event": {"event": rubbish if isinstance(rubbish, str) else str(rubbish)[:100]},
        "value": {"why": rubbish},
        "in a list": {"why": [rubbish]},
        "in a dict": {"why": {"inner": rubbish, str(rubbish)[:2000]: 1}},
        "as a name": {str(rubbish)[:2000]: 1},
    }
    line = rendered(**facts[where])
    assert len(line) < 200_000
    assert b"\n" not in line
    text = line.decode("utf-8")
    assert all(character.isprintable() for character in text)
    told = json.loads(line)
    assert told["service.name"] == "gateway"
    assert told["log.level"] == "info"
    assert "secret" not in text or where in ("event", "as a name", "in a dict"), "an exception is its type"
    shown = json.dumps(list(_strings(told)), ensure_ascii=False)
    assert all(character.isprintable() for character in shown), "also once it is decoded"


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, dict):
        return [text for name, item in value.items() for text in (name, *_strings(item))]
    return []


class Stage(Enum):
    PARKED = "PARKED"


def test_values_keep_their_meaning() -> None:
    line = json.loads(
        rendered(
            stage=Stage.PARKED,
            path=Path("/a/b"),
            attempt=3,
            share=0.5,
            is_late=True,
            why=None,
            parts=(1, "b"),
        )
    )
    wanted = {"stage": "PARKED", "path": "/a/b", "attempt": 3, "share": 0.5, "is_late": True, "why": None}
    assert {name: line[name] for name in wanted} == wanted
    assert line["parts"] == [1, "b"]


def test_users_are_told_apart_by_a_hash_that_is_the_same_everywhere_and_needs_the_key() -> None:
    alice = json.loads(rendered(user_id="alice"))["user.hash"]
    nested = json.loads(rendered(facts={"user_id": "alice", "bucket": 7}))["facts"]
    assert nested == {"user.hash": alice, "bucket": 7}
    assert len(alice) == 16
    assert alice != json.loads(rendered(user_id="bob"))["user.hash"]
    assert alice != json.loads(told_with(b"another", user_id="alice"))["user.hash"]
    assert b"alice" not in rendered(**{"user.id": "alice", "user": "alice"})
    assert b"user" not in told_with(None, user_id="alice"), "without a key users are left out"


@pytest.mark.parametrize("name", sorted(logs.DROPPED))
def test_fields_that_hold_what_people_sent_are_left_out_and_named(name: str) -> None:
    line = json.loads(rendered(**{name: "canary", "facts": {name: "canary", "kept": 1}}))
    assert "canary" not in json.dumps(line)
    assert (line["log.lost"], line["facts"]) == ([name], {"kept": 1})


@pytest.mark.parametrize("name", sorted(logs.OBJECTS))
def test_no_plain_value_stands_where_ecs_has_an_object(name: str) -> None:
    line = json.loads(rendered(**{name: "TimeoutError"}))
    assert name not in line


class Refused(Exception):
    """As asyncpg's, which quote the row."""

    sqlstate = "23505"
    table_name = "orders"
    constraint_name = "orders_pkey"
    message = 'value "canary"'

    def __str__(self) -> str:
        return "duplicate key value\nDETAIL:  Key (user_id)=(canary\ncanary) already exists."


def test_a_trace_back_says_what_broke_and_quotes_no_row() -> None:
    def breaks() -> None:
        try:
            raise Refused
        except Refused as refused:
            raise RuntimeError("cannot write") from refused

    with pytest.raises(RuntimeError) as raised:
        breaks()
    text = stack_trace(raised.value)
    assert "canary" not in text
    assert text.index("sqlstate=23505 table=orders constraint=orders_pkey") < text.index("\nRuntimeError")
    assert "cannot write" not in text, "nobody knows what it quotes"
    assert "in breaks" in text
    line = rendered(exc_info=ExceptionGroup("both", [Refused(), ValueError("y" * 100_000)]))
    assert b"canary" not in line
    assert len(line) < 2 * logs.STACK_CHARS_MAX


class Wish(pydantic.BaseModel):
    """What somebody sends."""

    amount: int


def raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except Exception as caught:  # noqa: BLE001 - whatever it is
        return caught
    raise AssertionError("nothing was raised")


def throw(error: BaseException) -> Callable[[], object]:
    def thrown() -> None:
        raise error

    return thrown


CANARY = "canary@example.org"
REFUSED = aiosmtplib.SMTPRecipientRefused(550, f"<{CANARY}> is nobody", CANARY)
AWAY = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=CANARY
)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Wish.model_validate({"amount": CANARY}), "pydantic_core._pydantic_core.ValidationError"),
        (lambda: int(CANARY), "ValueError"),
        (lambda: {"": 1}[CANARY], "KeyError"),
        (
            lambda: Path(f"/nowhere/{CANARY}").read_text(),
            "FileNotFoundError: [Errno 2] No such file or directory",
        ),
        (throw(REFUSED), "aiosmtplib.errors.SMTPRecipientRefused: code=550"),
        (throw(aiosmtplib.SMTPRecipientsRefused([REFUSED])), "aiosmtplib.errors.SMTPRecipientsRefused"),
        (throw(NotSent(f"550 {CANARY}", may_pass=False)), "chassis.mail.NotSent"),
        (throw(AWAY), "grpc.aio._call.AioRpcError: UNAVAILABLE"),
        (throw(ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 5432)")), "('10.0.0.1', 5432)"),
        (throw(LoopDied(f"the loop of {CANARY}")), "chassis.supervise.LoopDied: the loop of (address)"),
        (lambda: None.canary, "AttributeError: name=canary"),  # type: ignore[attr-defined]
    ],
)
def test_of_what_others_raise_only_what_quotes_nobody_is_told(make: Callable[[], object], told: str) -> None:
    text = stack_trace(raised(make))
    assert CANARY not in text
    assert text.endswith(told)


@pytest.mark.parametrize(
    ("make", "path", "told"),
    [
        (
            lambda: Path("/nowhere/cert.pem").read_bytes(),
            None,
            {"error.type": "FileNotFoundError", "errno": 2, "file": "/nowhere/cert.pem"},
        ),
        (
            throw(OSError(28, "No space left on device")),
            Path("/full/keys.json"),
            {"error.type": "OSError", "errno": 28, "file": "/full/keys.json"},
        ),
        (throw(ValueError(CANARY)), Path("/keys.json"), {"error.type": "ValueError", "file": "/keys.json"}),
        (throw(ValueError(CANARY)), None, {"error.type": "ValueError"}),
    ],
)
def test_of_a_file_of_ours_a_line_says_which_it_is_and_what_is_wrong_with_it(
    make: Callable[[], object], path: Path | None, told: dict[str, object]
) -> None:
    about = logs.of_our_file(raised(make), path)
    line = json.loads(Lines({}, None)(None, "error", {"event": "unreadable", **about}))
    assert {name: line[name] for name in ("error.type", "errno", "file") if name in line} == told
    assert CANARY not in json.dumps(line)


def test_our_own_exceptions_say_what_they_say() -> None:
    assert set(SHIPPED) <= OURS


@pytest.mark.parametrize(
    ("logger", "form", "filled_in", "said"),
    [
        ("some.driver", "lost %s", (CANARY,), "lost %s"),
        ("some.driver", f"lost {CANARY}", (), "lost (address)"),
        ("some.driver", f"lost 'the {CANARY[:6]}' and more", (), "lost (...) and more"),
        ("asyncio", f"Task exception was never retrieved\nexception={CANARY!r}", (), "Task exception was"),
        ("aiokafka.conn", "Unable to connect to %s:%s", ("broker", 9092), "Unable to connect to broker:9092"),
        ("aiokafka.conn", "%s %s", ("too few",), "%s %s"),
        ("some.driver", Refused(), (), "<Refused>"),
    ],
)
def test_of_what_a_library_says_the_form_is_told(
    logger: str, form: Any, filled_in: tuple[Any, ...], said: str
) -> None:
    written: list[bytes] = []
    handler = logs.LibraryHandler(Lines({}, None), written.append)
    handler.emit(logging.LogRecord(logger, logging.WARNING, "x.py", 1, form, filled_in, None))
    (line,) = map(json.loads, written)
    assert CANARY[:6] not in written[0].decode()
    assert line["message"].startswith(said)
    assert (line["event.action"], line["log.logger"]) == (logs.LIBRARY_SAID, logger)
