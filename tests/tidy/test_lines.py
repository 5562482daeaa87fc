"""What the code says to logs: names that never change, and nothing that is a person's or a caller's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis import logs
from tests.tidy.tree import SHIPPED, tree, written

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
SAYERS = ("bind", "say_about", "describe")
"""What puts facts on all lines of a call, or on its span."""
PEOPLES = logs.DROPPED | logs.HASHED
HAS_ITS_HASH = "user_id"
"""The one name under which a user may be given: the line has its hash."""


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call that says something, in everything that ships."""
    for path in written(".py", under=SHIPPED):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and says(node.func):
                yield path, node


def says(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id in SAYERS
    if not isinstance(called, ast.Attribute):
        return False
    if isinstance(called.value, ast.Name) and called.value.id == "log":
        return called.attr in LEVELS
    return called.attr in SAYERS


CALLS = [pytest.param(call, id=f"{path}:{call.lineno}") for path, call in calls()]


def named(call: ast.Call) -> dict[str, ast.expr]:
    """The facts of a call by name; those of a dict that is written out too."""
    facts = {}
    for keyword in call.keywords:
        if keyword.arg is not None:
            facts[keyword.arg] = keyword.value
        elif isinstance(keyword.value, ast.Dict):
            pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
            facts |= {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
    return facts


def test_there_are_calls_to_look_at() -> None:
    assert len(CALLS) > 100


@pytest.mark.parametrize("call", CALLS)
def test_an_event_has_a_name_that_never_changes(call: ast.Call) -> None:
    if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS:
        (event,) = call.args
        if ast.unparse(event) == "ACTION":
            return
        assert isinstance(event, ast.Constant), "a name put together cannot be searched for"
        assert re.fullmatch(r"[a-z][a-z0-9_]+", str(event.value))


@pytest.mark.parametrize("call", CALLS)
def test_no_fact_is_a_persons_a_payload_or_a_parameter(call: ast.Call) -> None:
    for name, value in named(call).items():
        assert name == HAS_ITS_HASH or name not in PEOPLES, name
        assert name == "error" or name not in logs.OBJECTS, f"{name} is an object of ECS"
        if name != HAS_ITS_HASH:
            assert not (mentioned(value) & PEOPLES), f"{name} says {ast.unparse(value)}"


def mentioned(value: ast.expr) -> set[str]:
    """Names and attributes that a value is made of, without what is only asked for an order's id."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("order_in"):
        return set()
    held = {part.attr for part in ast.walk(value) if isinstance(part, ast.Attribute)}
    return held | {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}


def test_the_rules_find_what_they_are_for() -> None:
    """A walk that finds nothing would pass for ever."""
    (statement,) = ast.parse('log.info("made", email=due.email, **{"user.id": who})').body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert says(statement.value.func)
    assert set(named(statement.value)) == {"email", "user.id"} <= PEOPLES
