"""Errors, metrics, settings, statements and fault points: each is documented, and each is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from chassis import faults, pg
from chassis.errors import OrdermeshError, Reason
from ordermesh.errors.v1 import reason_pb2
from scripts import docs
from tests.tidy.tree import ROOT, SHIPPED, text, tree, written

RESERVED_REASONS: set[str] = set()
"""In the contract already, since callers must know them before they can meet them."""
CLASSES = [kind for kinds in docs.error_classes().values() for kind in kinds]


def test_the_reasons_in_code_are_those_of_the_proto() -> None:
    numbered = {name.removeprefix("REASON_") for name in reason_pb2.Reason.DESCRIPTOR.values_by_name}
    assert {reason.value for reason in Reason} == numbered - {"UNSPECIFIED"}
    assert all(reason.name == reason.value for reason in Reason)


def test_every_reason_of_the_proto_says_what_it_means() -> None:
    assert docs.reasons_of_proto().keys() == {reason.value for reason in Reason}
    assert all(comment.endswith(".") for comment in docs.reasons_of_proto().values())


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_has_a_code_a_reason_and_a_sentence_for_its_caller(kind: type[OrdermeshError]) -> None:
    assert kind.__doc__, "the docstring is what a caller reads"
    assert kind.sentence().endswith("."), kind.sentence()
    assert kind.code.name != "OK"
    assert kind.reason in Reason
    assert kind.retry_after_s is None or 0 < kind.retry_after_s <= 60


def mentions(path: Path) -> Iterator[str]:
    """Names that a file uses outside of imports and class heads; `Reason.X` as a whole."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef):
            continue
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.Attribute | ast.Name):
                yield ast.unparse(part)


def test_every_error_class_is_raised_and_every_reason_can_be_met() -> None:
    """A refusal nobody makes is a promise nobody keeps."""
    catalogues = {path for path in written(".py", under=SHIPPED) if path.name == "errors.py"}
    used = [
        name for path in written(".py", under=SHIPPED) if path not in catalogues for name in mentions(path)
    ]
    raised = {name.rpartition(".")[2] for name in used}
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in raised] == []

    met = {kind.reason.value for kind in CLASSES}
    met |= {name.removeprefix("Reason.") for name in used if name.startswith("Reason.")}
    assert {reason.value for reason in Reason} - met == RESERVED_REASONS


def models() -> list[type[BaseModel]]:
    """Every settings model, with the ones inside of it."""
    found: list[type[BaseModel]] = []
    for _, model in docs.settings_models():
        found += [model, *docs.nested(model)]
    return found


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_a_setting_says_what_it_is_for_and_its_numbers_have_units_and_bounds(model: type[BaseModel]) -> None:
    assert model.model_config.get("frozen"), "settings do not change while a process runs"
    for name, field in model.model_fields.items():
        assert (field.description or "").endswith((".", "}")), f"{name} has no sentence"
        if field.annotation in (int, float):
            assert docs.bound(field), f"{name} has no bound"


def test_every_setting_is_read() -> None:
    code = "\n".join(text(path) for path in written(".py", under=SHIPPED))
    unread = [
        f"{model.__name__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if not (field.description or "").endswith("not used yet.") and not re.search(rf"\.{name}\b", code)
    ]
    assert unread == []


STATEMENTS = [
    (path.parent.as_posix().replace("/", "."), path.name, name, body)
    for path in written(".sql", under=SHIPPED)
    for name, body in vars(pg.queries(path.parent.as_posix().replace("/", "."), path.name)).items()
]


@pytest.mark.parametrize(
    ("package", "file", "name", "body"), STATEMENTS, ids=[f"{s[0]}.{s[2]}" for s in STATEMENTS]
)
def test_a_named_statement_is_used_and_says_in_a_sentence_what_it_does(
    package: str, file: str, name: str, body: str
) -> None:
    head = re.match(r"(?:-- ?[^\n]*\n)+", body)
    assert head, f"{file}: {name} needs a sentence below its name"
    assert re.search(r"[.:]\s*$", head[0]), f"{file}: the comment of {name} is no sentence"
    folder = package.replace(".", "/")
    code = "\n".join(
        text(path) for path in written(".py", under=SHIPPED) if path.as_posix().startswith(folder)
    )
    everything = r"vars\(|__dict__"
    assert re.search(rf"\.{name}\b|[\"']{name}[\"']|{everything}", code), f"{file}: nobody uses {name}"


def test_statements_stand_in_sql_files_and_not_in_strings() -> None:
    """Two names for one statement cannot be kept; a statement in a string cannot be found."""
    clause = re.compile(r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM)\b", re.DOTALL)
    services = ("gateway", "shard_proxy", "order_svc", "history_svc", "recovery_svc", "archive_svc")
    found = [
        f"{path}:{node.lineno}"
        for path in written(".py", under=services)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and clause.search(node.value)
    ]
    assert found == []


def test_every_fault_point_says_what_is_true_there() -> None:
    docs.modules()
    assert all(len(truth.split()) >= 4 for truth in faults.declared().values())


def test_the_packages_of_statements_ship_them() -> None:
    for package, file, _, _ in STATEMENTS:
        assert resources.files(package).joinpath(file).is_file()
    assert (ROOT / "db/shard/schema.sql").is_file()
