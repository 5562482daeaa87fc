"""The page for people: each curl line that it shows does what it says."""

import html
import re
import shlex
import uuid
from collections.abc import AsyncIterator

import pytest

from ordermesh.archive.v1.statement_service_pb2 import Statement
from ordermesh.order.v1.order_pb2 import Order
from tests import gateways
from tests.gateways import Rest

HERE = "http://127.0.0.1:8400"


@pytest.fixture
async def rest(tmp_path) -> AsyncIterator[Rest]:
    async with gateways.opened(tmp_path, profile="local") as opened:
        yield opened


class Line:
    """A curl line, as a shell would read it: method, address, headers, body."""

    def __init__(self, text: str, known: dict[str, str]) -> None:
        for name, value in known.items():
            text = text.replace(f"${name}", value)
        text = text.replace("$(uuidgen)", str(uuid.uuid4())).replace("\\\n", " ")
        assert "$" not in text, text
        program, *words = shlex.split(text)
        assert program == "curl"
        self.method, self.url, self.body = "", "", None
        self.headers: dict[str, str] = {}
        while words:
            word = words.pop(0)
            if word == "-X":
                self.method = words.pop(0)
            elif word == "-H":
                name, _, value = words.pop(0).partition(": ")
                self.headers[name] = value
            elif word == "-d":
                self.body = words.pop(0)
            elif word in ("-i", "-iN", "-fLOJ"):
                assert word == "-iN" or "/events" not in text
            else:
                assert word.startswith(f"{HERE}/"), word
                assert not set(word) & set("{}[]"), "curl would take them for patterns"
                self.url = word.removeprefix(HERE)
        self.method = self.method or ("GET" if self.body is None else "POST")


async def test_every_line_of_the_page_does_what_it_is_shown_for(rest: Rest) -> None:
    document = (await rest.http.get("/openapi.json")).json()
    page = (await rest.http.get("/docs")).text
    shown = re.findall(r"<h2 id=(\w+)>.*?<pre>(.*?)</pre>", page, re.DOTALL)
    expected = {
        operation["operationId"]: (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert [name for name, _ in shown] == list(expected)

    order = (await rest.create()).json()["orderId"]
    rest.mesh.orders[order].stage = Order.DONE
    known = {"TOKEN": rest.token(), "ORDER": order, "STATEMENT": "none yet"}
    for name, text in shown:
        method, path, operation = expected[name]
        line = Line(html.unescape(text), known)
        pattern = re.sub(r"\{\w+\}", "[0-9a-f-]{36}", path)
        assert (line.method, bool(re.fullmatch(pattern, line.url))) == (method, True), name
        if name == "download_statement":
            rest.mesh.statements.made[known["STATEMENT"]].state = Statement.READY
        assert (line.body is not None) == ("requestBody" in operation)
        answered = await rest.http.request(line.method, line.url, headers=line.headers, content=line.body)
        best = {"create_order": 201, "request_statement": 202, "download_statement": 302}.get(name, 200)
        assert answered.status_code == best, (name, answered.text)
        assert str(best) in operation["responses"]
        if name == "request_statement":
            known["STATEMENT"] = answered.json()["statementId"]
