"""The shipper's parts: what is read, what is kept until it is written, what becomes of what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from ops.shipper import intake
from ops.shipper.app import elasticsearch, is_our_log
from ops.shipper.bulk import PAUSE_MAX_S, BulkWriter, DeadFile, Document
from ops.shipper.documents import UNSTRUCTURED, LineDocuments, span_of
from ops.shipper.settings import ShipperSettings
from ops.shipper.spans import span_lines
from ops.shipper.spool import Spool
from ops.shipper.tail import LINE_BYTES_MAX, Line, Tail

AT = "2026-09-01T12:30:15.123456Z"


class Logs:
    """A directory that is written to and tailed."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "logs"
        self.directory.mkdir()
        self.offsets = root / "offsets.json"
        self.tail = self.opened()

    def opened(self) -> Tail:
        return Tail(self.directory, self.offsets, wanted=is_our_log)

    def say(self, name: str, text: str) -> None:
        with (self.directory / name).open("a") as file:
            file.write(text)

    def read(self, bytes_max: int = 10_000_000, lines_max: int = 10_000) -> list[str]:
        """The next lines, without passing them."""
        return [line.text.decode() for line in self.lines(bytes_max, lines_max)]

    def lines(self, bytes_max: int = 10_000_000, lines_max: int = 10_000) -> list[Line]:
        return self.tail.read(bytes_max=bytes_max, lines_max=lines_max)

    def ship(self, **bounds: int) -> list[str]:
        lines = self.lines(**bounds)
        self.tail.passed(lines)
        self.tail.save()
        return [line.text.decode() for line in lines]


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_only_whole_lines_are_read_and_they_come_again_until_they_are_passed(logs: Logs) -> None:
    assert logs.read() == []
    logs.say("a.log", "one\ntwo\nthr")
    assert logs.read() == logs.read() == ["one", "two"]
    assert logs.ship() == ["one", "two"]
    assert logs.ship() == []
    logs.say("a.log", "ee\n")
    assert logs.ship() == ["three"]


def test_a_restart_goes_on_where_the_last_one_had_saved(logs: Logs) -> None:
    logs.say("a.log", "one\ntwo\n")
    assert logs.ship(lines_max=1) == ["one"]
    lines = logs.lines()
    logs.tail.passed(lines)  # Killed before it was saved.
    logs.tail = logs.opened()
    again = logs.lines()
    assert [line.text for line in again] == [b"two"]
    assert [line.id for line in again] == [line.id for line in lines], "so that it is written once"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_file_that_is_moved_aside_is_read_to_its_end_and_the_new_one_from_its_beginning(
    logs: Logs, restarts: bool
) -> None:
    logs.say("a.log", "one\ntwo\nthree\n")
    assert logs.ship(lines_max=1) == ["one"]
    (logs.directory / "a.log").rename(logs.directory / "a.log.1")
    logs.say("a.log", "one\nfour\n")
    if restarts:
        logs.tail.close()
        logs.tail = logs.opened()
    assert sorted(logs.ship()) == ["four", "one", "three", "two"]
    assert logs.ship() == []


def test_a_file_that_is_gone_is_still_read_to_its_end_when_it_was_open(logs: Logs) -> None:
    logs.say("a.log", "one\ntwo\n")
    assert logs.ship(lines_max=1) == ["one"]
    (logs.directory / "a.log").unlink()
    assert logs.ship() == ["two"]
    assert logs.ship() == []


def test_a_file_that_is_begun_anew_in_place_is_read_from_its_beginning(logs: Logs) -> None:
    logs.say("a.log", "the first line of it\nand more\n")
    logs.ship()
    (logs.directory / "a.log").write_text("new\n")
    assert logs.ship() == ["new"]


def test_files_take_turns_and_no_read_takes_more_than_it_may(logs: Logs) -> None:
    for name in "abc":
        logs.say(f"{name}.log", f"{name}{'x' * 999}\n" * 1000)
    seen = []
    for _ in range(3):
        lines = logs.lines(lines_max=100)
        assert len(lines) == 100
        seen += [line.name for line in lines]
        logs.tail.passed(lines)
    assert set(seen) == {"a.log", "b.log", "c.log"}
    lines = logs.lines(bytes_max=2 * LINE_BYTES_MAX)
    assert sum(len(line.text) for line in lines) <= 3 * LINE_BYTES_MAX


def test_a_line_without_end_is_cut_and_does_not_stop_what_follows(logs: Logs) -> None:
    logs.say("a.log", "first\n" + "x" * (2 * LINE_BYTES_MAX + 5) + "\nlast\n")
    shipped = []
    while lines := logs.ship():
        shipped += lines
    assert [len(line) for line in shipped] == [5, LINE_BYTES_MAX, LINE_BYTES_MAX, 5, 4]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": -1, "b": "c"}', "\x00"])
def test_offsets_that_make_no_sense_have_all_read_again(logs: Logs, damage: str) -> None:
    logs.say("a.log", "one\n")
    logs.ship()
    logs.offsets.write_text(damage)
    logs.tail = logs.opened()
    assert logs.ship() == ["one"]


def test_the_logs_of_processes_are_read_and_what_is_for_people_is_not() -> None:
    names = ["order_svc.s1.log", "gateway.log.1", "dev.log", "dev.log.1", "notes.txt", ".gateway.log.partial"]
    assert [name for name in names if is_our_log(name)] == ["order_svc.s1.log", "gateway.log.1"]


def line(text: str, name: str = "order_svc.s1.log", offset: int = 0, file: str = "f") -> Line:
    return Line(file, name, offset, offset + len(text) + 1, text.encode())


@pytest.mark.parametrize(("key", "sent"), [("", None), ("aWQ6a2V5", "ApiKey aWQ6a2V5")])
async def test_elasticsearch_is_asked_with_the_key_that_the_settings_have(
    tmp_path: Path, key: str, sent: str | None
) -> None:
    settings = ShipperSettings(
        elasticsearch="https://es.internal:9200", elasticsearch_api_key=key, shipper_dir=tmp_path
    )
    async with elasticsearch(settings) as http:
        request = http.build_request("PUT", "/_index_template/logs-ordermesh")
    assert str(request.url) == "https://es.internal:9200/_index_template/logs-ordermesh"
    assert request.headers.get("authorization") == sent
    assert "aWQ6a2V5" not in repr(settings)


def test_an_ecs_line_is_its_own_document_to_the_byte() -> None:
    text = f'{{"@timestamp":"{AT}","message":"x",  "odd":1}}'
    assert LineDocuments().of(line(text, offset=255)) == ("f-ff", text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "Killed",
        "{",
        "[1]",
        '{"a":1}',
        '{"@timestamp":7}',
        '{"@timestamp":"now"}',
        '{"@timestamp":"2026-13-45T00:00:00Z"}',
    ],
)
def test_a_line_that_is_none_is_wrapped_with_the_time_of_the_one_before(text: str) -> None:
    documents = LineDocuments()
    documents.of(line(f'{{"@timestamp":"{AT}"}}'))
    _, body = documents.of(line(text, offset=9))
    wrapped = orjson.loads(body)
    assert (wrapped["@timestamp"], wrapped["event.action"]) == (AT, UNSTRUCTURED)
    size = f"({len(text)} bytes that are in the file only)"
    assert (wrapped["message"], wrapped["service.name"], wrapped["log.offset"]) == (size, "order_svc", 9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Traceback (most recent call last):", ""),
        ('  File "/srv/order_svc/app.py", line 7, in serve', ""),
        ("    int(user)", "(13 bytes that are in the file only)"),
        ("ValueError: invalid literal for int(): 'canary'", "ValueError"),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 error",
            "pydantic_core._pydantic_core.ValidationError",
        ),
        ("  Input should be an integer, input_value='canary'", "(50 bytes that are in the file only)"),
        ("KeyboardInterrupt", ""),
        ("Canary", "(6 bytes that are in the file only)"),
        ("Canary: is not at home", "(22 bytes that are in the file only)"),
    ],
)
def test_of_a_trace_back_it_is_shipped_where_and_what_was_raised(text: str, told: str) -> None:
    body = orjson.loads(LineDocuments().of(line(text))[1])
    assert body["message"] == (told or text)


def test_bytes_that_are_no_text_are_a_document_all_the_same() -> None:
    odd = Line("f", "gateway.log", 0, 9, b"\xff\x00\x1b[2J" * 100_000)
    body = LineDocuments().of(odd)[1]
    assert len(body) < 100_000
    assert orjson.loads(body)["service.name"] == "gateway"


class Search:
    """An Elasticsearch of the tests: answers what it was told to, and then takes everything once."""

    def __init__(self, *answers: Callable[[list[str]], httpx.Response] | Exception) -> None:
        self.answers = list(answers)
        self.there: dict[str, bytes] = {}
        self.requests = 0
        self.installed = 0
        self.slept: list[float] = []

    def writer(self, dead: Path) -> BulkWriter:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.take), base_url="http://es")

        async def again() -> None:
            self.installed += 1

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        return BulkWriter(http, DeadFile(dead), again=again, draw=lambda: 1.0, sleep=sleep)

    def take(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        parts = request.content.split(b"\n")
        ids = [json.loads(part)["create"]["_id"] for part in parts[:-1:2]]
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer(ids)
        items = []
        for document_id, body in zip(ids, parts[1::2], strict=True):
            items.append({"create": {"status": 409 if document_id in self.there else 201}})
            self.there.setdefault(document_id, body)
        return httpx.Response(200, json={"items": items})


def status(code: int, **headers: str) -> Callable[[list[str]], httpx.Response]:
    return lambda _: httpx.Response(code, headers=headers)


def per_item(**codes: int) -> Callable[[list[str]], httpx.Response]:
    def answer(ids: list[str]) -> httpx.Response:
        wrong = {"type": "document_parsing_exception", "reason": "failed to parse field"}
        return httpx.Response(
            200,
            json={"items": [{"create": {"status": codes.get(each, 201), "error": wrong}} for each in ids]},
        )

    return answer


DOCUMENTS: list[Document] = [("a", b'{"n":1}'), ("b", b'{"n":2}'), ("c", b'{"n":3}')]


@pytest.mark.parametrize(
    "answers",
    [
        [httpx.ConnectError("away"), httpx.ReadTimeout("late")],
        [status(429), status(503), status(502)],
        [lambda _: httpx.Response(200, json={"items": []})],
        [lambda _: httpx.Response(200, content=b"half an ans")],
        [status(413)],
        [status(401), status(403), status(405)],
        [lambda ids: httpx.Response(200, json={"items": [{"create": {"status": 403}}] * len(ids)})],
    ],
)
async def test_what_is_not_taken_now_is_sent_until_it_is(tmp_path: Path, answers: list[Any]) -> None:
    search = Search(*answers)
    await search.writer(tmp_path / "dead").write("logs", DOCUMENTS)
    assert search.there == dict(DOCUMENTS)
    assert not (tmp_path / "dead").exists()


async def test_pauses_double_up_to_a_ceiling_and_are_no_shorter_than_was_asked_for(tmp_path: Path) -> None:
    search = Search(*[status(503)] * 12, status(429, **{"retry-after": "3"}))
    await search.writer(tmp_path / "dead").write("logs", DOCUMENTS)
    assert search.slept[:3] == [0.4, 0.8, 1.6]
    assert max(search.slept[:12]) == PAUSE_MAX_S
    assert search.slept[12] == PAUSE_MAX_S + 3


async def test_only_what_is_left_is_sent_again_and_what_is_refused_is_kept_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    search = Search(per_item(a=201, b=400, c=429))
    await search.writer(tmp_path / "dead").write("logs", DOCUMENTS)
    assert search.there == {"c": b'{"n":3}'}
    (dead,) = [json.loads(text) for text in (tmp_path / "dead").read_text().splitlines()]
    assert (dead["stream"], dead["status"], dead["id"], dead["line"]) == ("logs", 400, "b", '{"n":2}')
    assert "failed to parse" in dead["because"]


async def test_a_bad_request_is_taken_apart_until_what_is_bad_stands_alone(tmp_path: Path) -> None:
    search = Search(status(400), status(400), per_item())
    await search.writer(tmp_path / "dead").write("logs", DOCUMENTS)
    (dead,) = [json.loads(text) for text in (tmp_path / "dead").read_text().splitlines()]
    assert dead["id"] == "a"


async def test_a_stream_that_is_gone_is_made_again(tmp_path: Path) -> None:
    search = Search(status(404))
    await search.writer(tmp_path / "dead").write("logs", DOCUMENTS)
    assert (search.installed, search.there) == (1, dict(DOCUMENTS))


async def test_a_repeat_writes_nothing_twice(tmp_path: Path) -> None:
    search = Search()
    writer = search.writer(tmp_path / "dead")
    await writer.write("logs", DOCUMENTS)
    await writer.write("logs", [("a", b'{"n":9}'), ("d", b"{}")])
    assert search.there == dict([*DOCUMENTS, ("d", b"{}")])


def test_the_file_of_refused_lines_is_bounded(tmp_path: Path) -> None:
    from ops.shipper.bulk import Refused

    dead = DeadFile(tmp_path / "dead", bytes_max=1000)
    dead.keep("logs", [Refused(("a", b"x" * 100), 400, "no")] * 100)
    assert 500 < (tmp_path / "dead").stat().st_size <= 1000


def spooled(tmp_path: Path, **bounds: int) -> tuple[Spool, Tail]:
    spool = Spool(tmp_path / "spans", **{"bytes_max": 1000, **bounds})
    return spool, Tail(tmp_path / "spans", tmp_path / "spans.json", wanted=Spool.wanted)


def test_what_is_spooled_is_bounded_and_makes_room_when_it_is_passed(tmp_path: Path) -> None:
    spool, tail = spooled(tmp_path, bytes_max=100, file_bytes=30)
    block = [b"x" * 19]
    assert [spool.add(block) for _ in range(7)] == [True] * 5 + [False] * 2
    assert spool.bytes_waiting == 100
    lines = tail.read(bytes_max=10_000, lines_max=3)
    tail.passed(lines)
    tail.save()
    spool.clear(tail.is_at_end_of)
    assert spool.bytes_waiting == 60, "a file goes when all of it is passed"
    assert spool.add(block)
    seen = len(lines)
    while lines := tail.read(bytes_max=10_000, lines_max=3):
        seen += len(lines)
        tail.passed(lines)
        spool.clear(tail.is_at_end_of)
    assert (seen, spool.bytes_waiting, list((tmp_path / "spans").iterdir())) == (6, 0, [])


def test_a_spool_goes_on_after_a_kill_and_leaves_out_half_a_line(tmp_path: Path) -> None:
    spool, _ = spooled(tmp_path)
    spool.add([b"one"])
    (killed,) = (tmp_path / "spans").iterdir()
    with killed.open("ab") as file:
        file.write(b"ha")
    spool, tail = spooled(tmp_path)
    spool.add([b"two"])
    lines = tail.read(bytes_max=1000, lines_max=10)
    assert [each.text for each in lines] == [b"one", b"two"]
    assert spool.bytes_waiting == 8
    tail.passed(lines)
    spool.clear(tail.is_at_end_of)
    assert list((tmp_path / "spans").iterdir()) == []


def test_a_disk_that_is_full_keeps_nothing_of_what_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, tail = spooled(tmp_path)
    spool.add([b"one"])
    original = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, block: bytes) -> int:
            return int(self.file.write(block[:2]))

    monkeypatch.setattr(Path, "open", lambda path, *how, **more: Full(original(path, *how, **more)))
    assert not spool.add([b"two"])
    monkeypatch.undo()
    assert [each.text for each in tail.read(bytes_max=1000, lines_max=10)] == [b"one"]


def export(**changes: Any) -> ExportTraceServiceRequest:
    def attribute(name: str, **value: Any) -> KeyValue:
        return KeyValue(key=name, value=AnyValue(**value))

    span = Span(
        **{
            "trace_id": bytes(range(16)),
            "span_id": bytes(range(8)),
            "parent_span_id": b"\x01" * 8,
            "name": "a.B/C",
            "kind": Span.SPAN_KIND_SERVER,
            "start_time_unix_nano": 1_788_265_815_123_456_789,
            "end_time_unix_nano": 1_788_265_815_123_457_789,
            "attributes": [
                attribute("order_id", string_value="7"),
                attribute("http.response.status_code", int_value=201),
            ],
            "status": Status(code=Status.STATUS_CODE_ERROR, message="UNAVAILABLE"),
            "links": [Span.Link(trace_id=b"\x02" * 16, span_id=b"\x03" * 8)],
            **changes,
        }
    )
    resource = Resource(
        attributes=[attribute("service.name", string_value="gateway"), attribute("shard", string_value="s1")]
    )
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=[span])])]
    )


def test_a_span_becomes_a_line_in_the_words_of_the_logs() -> None:
    (text,) = span_lines(export())
    assert orjson.loads(text) == {
        "@timestamp": "2026-09-01T12:30:15.123456789Z",
        "trace.id": "000102030405060708090a0b0c0d0e0f",
        "span.id": "0001020304050607",
        "span.name": "a.B/C",
        "span.kind": "server",
        "event.duration": 1000,
        "event.outcome": "failure",
        "service.name": "gateway",
        "shard": "s1",
        "order_id": "7",
        "parent.id": "0101010101010101",
        "span.status": "UNAVAILABLE",
        "links": [{"trace.id": "02" * 16, "span.id": "03" * 8}],
        "attributes": {"http.response.status_code": 201},
    }
    assert span_of(Line("f", "n", 0, 0, text))[0] == "000102030405060708090a0b0c0d0e0f-0001020304050607"


def test_a_span_without_ids_is_no_span() -> None:
    assert span_lines(export(trace_id=b"")) == span_lines(export(span_id=b"\x01" * 7)) == []


def taking(spool: Spool) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(intake.application(spool)), base_url="http://shipper"
    )


async def test_spans_are_acknowledged_once_they_are_in_a_file(tmp_path: Path) -> None:
    spool, tail = spooled(tmp_path, bytes_max=10_000)
    body = export().SerializeToString()
    async with taking(spool) as http:
        headers = {"content-type": "application/x-protobuf"}
        plain = await http.post(intake.PATH, content=body, headers=headers)
        packed = await http.post(
            intake.PATH, content=gzip.compress(body), headers={**headers, "content-encoding": "gzip"}
        )
    assert (plain.status_code, packed.status_code) == (200, 200)
    assert len(tail.read(bytes_max=10_000, lines_max=10)) == 2


async def test_who_sends_spans_without_room_for_them_is_told_to_come_back(tmp_path: Path) -> None:
    spool, tail = spooled(tmp_path, bytes_max=10)
    async with taking(spool) as http:
        answer = await http.post(
            intake.PATH,
            content=export().SerializeToString(),
            headers={"content-type": "application/x-protobuf"},
        )
    assert (answer.status_code, int(answer.headers["retry-after"])) == (503, intake.COME_BACK_S)
    assert tail.read(bytes_max=1000, lines_max=10) == []


BOMB = gzip.compress(bytes(64 * 1024 * 1024))


@pytest.mark.parametrize(
    ("body", "headers", "wanted"),
    [
        (b"{}", {"content-type": "application/json"}, 415),
        (b"\xff" * 100, {}, 400),
        (b"no gzip", {"content-encoding": "gzip"}, 400),
        (BOMB, {"content-encoding": "gzip"}, 413),
        (bytes(intake.BODY_BYTES_MAX + 1), {}, 413),
    ],
    ids=["json", "rubbish", "no gzip", "bomb", "huge"],
)
async def test_what_is_no_export_is_refused(
    tmp_path: Path, body: bytes, headers: dict[str, str], wanted: int
) -> None:
    spool, _ = spooled(tmp_path)
    async with taking(spool) as http:
        answer = await http.post(
            intake.PATH, content=body, headers={"content-type": "application/x-protobuf", **headers}
        )
    assert answer.status_code == wanted
    assert list((tmp_path / "spans").iterdir()) == []


def test_no_more_files_are_open_than_there_are(logs: Logs) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        logs.say("a.log", f"{number}\n")
        logs.ship()
        (logs.directory / "a.log").rename(logs.directory / "a.log.1")
    logs.ship()
    after = len(list(Path("/proc/self/fd").iterdir()))
    assert after - before <= 2
    logs.tail.close()
