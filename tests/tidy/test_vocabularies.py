"""Lists of what labels may say are what the code says: a word that only one of the two knows counts nothing.

A value that is not listed makes a series with its first event, and hides that from `increase()`; one that is
never said is a promise that nobody keeps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive_svc import columns, domain
from chassis import pg
from chassis.rpc import counts
from chassis.s3 import errors as s3_errors
from chassis.s3 import parts as s3_parts
from gateway import edge
from history_svc import lookback
from history_svc.care.operation import State
from order_svc.order import Status
from shard_proxy.moves import Phase
from telemetry import registry
from telemetry.registry import Metric
from tests.tidy.tree import SHIPPED, text, tree, written


def words(path: str, pattern: str) -> set[str]:
    """What the one group of a pattern finds in a file."""
    return set(re.findall(pattern, text(Path(path))))


def s3_outcomes() -> set[str]:
    kinds = [*vars(s3_errors).values(), *vars(s3_parts).values()]
    return {kind.outcome for kind in kinds if isinstance(kind, type) and issubclass(kind, s3_errors.S3Error)}


SAID: dict[str, set[str]] = {
    "archived_table": {columns.ORDERS.table, columns.JOURNAL.table},
    "case_reason": set(lookback.CASE_REASONS),
    "connection_refusal": words("gateway/listener.py", r'"(all|address)"'),
    "consumer_error": words(
        "history_svc/channel/hub.py", r"\b(KafkaUnavailable|EventsUnavailable|ConsumerStuck)\b"
    ),
    "final_status": {status.value for status in Status if status is not Status.PENDING},
    "grpc_type": set(counts._TYPES.values()),
    "http_method": {*edge.METHODS, edge.OTHER},
    "mail_outcome": words("archive_svc/statement/postman.py", r'return "(\w+)"'),
    "move_end": {phase.value for phase in Phase if phase.is_over},
    "object_call": words("chassis/s3/store.py", r'\.make\(\s*"(\w+)"')
    | words("chassis/s3/parts.py", r'\.make\(\s*"(\w+)"'),
    "object_outcome": s3_outcomes() | {"ok", "cancelled"},
    "operation_end": {state.value for state in State if state is not State.OPEN},
    "partitioned_table": {table.name for table in domain.TABLES},
    "pending_age": set(lookback.AGES),
    "pg_failure": {reason.value for reason in pg._FAILURES},
    "rate_policy": words("gateway/app.py", r'Rates\(\s*"(\w+)"'),
    "spans_refusal": words("ops/shipper/intake.py", r'_refused\("(\w+)"'),
    "statement_state": words(
        "archive_svc/statement/statements.sql", r"'(WAITING|PLANNING|READING|RENDERING|STORING)'"
    ),
    "token_refusal": words("chassis/bearers.py", r'TokenRefused\("(\w+)"'),
    "turn_outcome": words("archive_svc/statement/worker.py", r'(?:return|outcome =) "(\w+)"'),
}
"""What the code says, of lists that it says as an enumeration, a constant, or words in one place."""


@pytest.mark.parametrize("name", SAID)
def test_a_list_is_what_the_code_says(name: str) -> None:
    assert SAID[name] == set(registry.vocabularies()[name].values)


def counted() -> Iterator[tuple[Path, int, Metric, list[set[str]]]]:
    """Each `CONSTANT.labels(...)` of shipped code, with the words that stand in the place of each label."""
    for path in written(".py", under=SHIPPED):
        for node in ast.walk(tree(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "labels" or any(isinstance(each, ast.Starred) for each in node.args):
                continue
            constant = ast.unparse(node.func.value).rpartition(".")[2]
            for metric in registry.metrics():
                if (
                    metric.constant == constant
                    and is_its_home(path, metric)
                    and len(metric.labels) == len(node.args)
                ):
                    yield path, node.lineno, metric, [set(literals(each)) for each in node.args]


def is_its_home(path: Path, metric: Metric) -> bool:
    """Of metrics with one name the one of the nearest package is meant."""
    homes = [each.package for each in registry.metrics() if each.constant == metric.constant]
    package = ".".join(path.parts[:-1])
    mine = [home for home in homes if package == home or package.startswith(f"{home}.")]
    return bool(mine) and max(mine, key=len) == metric.package


def literals(argument: ast.expr) -> Iterator[str]:
    if isinstance(argument, ast.IfExp):
        yield from literals(argument.body)
        yield from literals(argument.orelse)
    elif isinstance(argument, ast.Constant):
        yield str(argument.value)


def test_a_word_that_something_is_counted_under_is_listed() -> None:
    found = [
        (path, line, label, word)
        for path, line, metric, said in counted()
        for (label, vocabulary), these in zip(metric.labels.items(), said, strict=True)
        for word in these
        if vocabulary.values and word not in vocabulary.values
    ]
    assert found == []


def test_words_of_lists_that_are_counted_as_they_stand_are_all_said() -> None:
    """Of lists that are counted by literal words alone, each word is somewhere."""
    said: dict[str, set[str]] = {}
    whole: dict[str, bool] = {}
    for _, _, metric, words_of in counted():
        for vocabulary, these in zip(metric.labels.values(), words_of, strict=True):
            said.setdefault(vocabulary.name, set()).update(these)
            whole[vocabulary.name] = whole.get(vocabulary.name, True) and bool(these)
    literal = {name for name, is_whole in whole.items() if is_whole and registry.vocabularies()[name].values}
    assert literal >= {"relay_end", "replica_outcome", "resent_because", "rewound_by", "key_fetch"}
    assert {name: said[name] for name in literal} == {
        name: set(registry.vocabularies()[name].values) for name in literal
    }
