"""Spans and attributes: each that the code makes is registered, each that is registered is made."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from chassis import store_spans
from scripts import docs
from telemetry import spans
from tests.tidy.tree import SHIPPED, text, tree, written

MAKERS = ("client_span", "work_span", "linked_span", "begun_span", "begun_work")
SAYERS = ("describe", "say_about", "stream_facts", *MAKERS)
OF_THE_CHASSIS = ("chassis/traces.py", "chassis/store_spans.py")
PYTHON = written(".py", under=SHIPPED)


def calls(names: tuple[str, ...]) -> Iterator[tuple[Path, ast.Call]]:
    for path in PYTHON:
        for node in ast.walk(tree(path)):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.attr
                if isinstance(called, ast.Attribute)
                else called.id
                if isinstance(called, ast.Name)
                else ""
            )
            if isinstance(node, ast.Call) and name in names:
                yield path, node


def test_every_span_has_a_name_that_is_registered() -> None:
    registered = {span.name for span in spans.spans()}
    for path, call in calls(MAKERS):
        if path.as_posix() in OF_THE_CHASSIS:
            continue
        name = ast.unparse(call.args[0])
        assert name == "EXECUTE" or ast.literal_eval(name) in registered, f"{path}: {name}"


def test_every_registered_span_is_made_and_says_what_it_is() -> None:
    code = "\n".join(text(path) for path in PYTHON)
    for span in spans.spans():
        assert not span.is_literal or f'{span.name}"' in code, f"nobody makes {span.name}"
        assert span.kind in ("server", "client", "internal", "producer", "consumer")
        assert all(said.endswith(".") for said in (span.place, span.meaning))
    names = [span.name for span in spans.spans()]
    assert len(names) == len(set(names))


def test_every_attribute_is_registered_and_used_and_none_is_a_persons() -> None:
    said: set[str] = set()
    for _, call in calls(SAYERS):
        said |= {keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg.endswith("_id")}
        for part in ast.walk(call):
            if isinstance(part, ast.Dict):
                said |= {str(key.value) for key in part.keys if isinstance(key, ast.Constant)}
    for path in PYTHON:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".set_attribute"):
                said.add(str(ast.literal_eval(node.args[0])))
    assert {"order_id", "upstream", "http.route", "error.type"} <= said
    assert said <= spans.attributes().keys()
    code = "\n".join(text(path) for path in PYTHON)
    assert [name for name in spans.attributes() if f'"{name}"' not in code and f"{name}=" not in code] == []
    assert not {"user", "user_id", "user.id", "email", "address"} & spans.attributes().keys()


def test_every_store_of_a_database_has_spans() -> None:
    """A class that is given a database asks it; what it asks would be missing from the traces."""
    without = []
    for module in docs.modules():
        for name, kind in vars(module).items():
            if not isinstance(kind, type) or kind.__module__ != module.__name__ or name in NOT_STORES:
                continue
            made = vars(kind).get("__init__")
            given = getattr(made, "__annotations__", {}).values()
            if any("pg.Database" in str(each) for each in given) and not store_spans.names_of(kind):
                without.append(f"{module.__name__}.{name}")
    assert without == []


NOT_STORES = frozenset({"Lookback", "Retention", "Shard"})
"""Loops, and the parts of a shard: nobody calls them."""
