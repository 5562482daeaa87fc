"""The ledger: what one simulated upstream executed, will execute and was told to do wrong, in one file.

Owned by the simulator's writer thread; tests and the load checker open the same SQLite file to read.
Executing is one transaction: the row is there before anybody hears of it, and survives a kill -9 of the
process (WAL; the machine is trusted to stay up). A second Execute of one key finds the first one when the
upstream is idempotent, and really executes again when it is not.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Self

from chassis import pg
from chassis.errors import InvalidField
from chassis.money import Money
from ops.upstream.domain import (
    Answer,
    Call,
    Delivery,
    Fate,
    Fault,
    Kind,
    Method,
    Scope,
    Strikes,
    Submission,
    Verdict,
    plan,
    spoken,
    strikes,
    waiting,
)

BUSY_S = 5.0
"""A new process may open the file while the one before it is still dying."""
FAULTS_MAX = 1000
"""Each call is held against every fault."""
DUE_BATCH = 100
"""Late executions per transaction, so that calls are not kept waiting behind them."""

queries = pg.queries("ops.upstream")


@dataclass(frozen=True, slots=True)
class Execution:
    """One row of the ledger: something executed, or refused for good."""

    seq: int
    key: str
    order_id: str
    leg: int
    attempt: int
    user_id: str
    amount: Money
    verdict: Verdict
    upstream_ref: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Reversal:
    """Something taken back."""

    key: str
    original_key: str
    upstream_ref: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the upstream says and how that travels."""

    answer: Answer
    delivery: Delivery


class Ledger:
    """The ledger's file; one thread at a time may use it. All methods block; a change is one transaction."""

    def __init__(self, db: sqlite3.Connection, *, name: str, idempotent: bool) -> None:
        self._db = db
        self._name = name
        self._idempotent = idempotent
        self._calls = 0
        self._faults = self._read_faults()

    @classmethod
    def open(cls, path: Path | str, *, name: str = "upstream", idempotent: bool = True) -> Self:
        """Open the ledger, making it when it is missing. The threads that use it must take turns.

        name:       goes into every upstream_ref.
        idempotent: whether a second Execute of a key finds the first one.
        """
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(resources.files("ops.upstream").joinpath("schema.sql").read_text(encoding="utf-8"))
        return cls(db, name=name, idempotent=idempotent)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the upstream does.

    def execute(self, ask: Submission, at: datetime) -> Reaction:
        """Do what an Execute asks for, or what the faults make of it, and say so."""
        with self._transaction():
            self._execute_due(at, ask.key)
            struck = self._strike(Method.EXECUTE, ask.key, ask.order_id, ask.user_id)
            if Kind.DOWN in struck:
                return _silence(struck)
            known = self._truth(ask.key, at, deny=False) if self._idempotent else None
            truth = known or self._carry_out(ask, plan(ask, struck), at)
            return Reaction(spoken(truth, struck, ask.key), struck.delivery)

    def probe(self, key: str, at: datetime) -> Reaction:
        """Say what became of a key. What is due is executed first: the answer is never behind the clock."""
        with self._transaction():
            self._execute_due(at, key)
            struck = self._strike(Method.PROBE, key, key.partition("/")[0], self._user_of(key))
            truth = self._reversed(key) or self._truth(key, at) or Answer(Verdict.NOT_FOUND)
            return Reaction(spoken(truth, struck, key), struck.delivery)

    def reverse(self, key: str, original_key: str, at: datetime) -> Reaction:
        """Take an execution back, once per key, and say so."""
        with self._transaction():
            order_id = original_key.partition("/")[0]
            struck = self._strike(Method.REVERSE, key, order_id, self._user_of(original_key))
            if Kind.DOWN in struck:
                return _silence(struck)
            truth = self._reversed(key) or self._take_back(key, original_key, order_id, struck, at)
            return Reaction(spoken(truth, struck, key), struck.delivery)

    def execute_due(self, at: datetime) -> int:
        """Execute what was put off until now, a batch at a time. Returns how many rows were written."""
        with self._transaction():
            return self._execute_due(at)

    def remember(self, executions: Iterable[Execution], later: Iterable[tuple[Submission, datetime]]) -> None:
        """Keep a past that was made up: what was executed or refused, and what will be executed at some time.
        Told again, nothing changes.
        """
        with self._transaction():
            self._db.executemany(queries.keep_execution, [_row(each) for each in executions])
            put_off = [_columns(ask, ask.amount) | {"due_at": _text(due_at)} for ask, due_at in later]
            self._db.executemany(queries.keep_pending, put_off)

    def forget(self, user_ids: Iterable[str]) -> None:
        """Remove everything of some users, as if they had never asked."""
        users = [{"user_id": user_id} for user_id in user_ids]
        with self._transaction():
            self._db.executemany(queries.forget_executions, users)
            self._db.executemany(queries.forget_pending, users)

    # What it is told.

    def set_fault(self, fault: Fault) -> Fault:
        """Keep a fault; returns it with its id.

        Raises: InvalidField when there are too many.
        """
        if len(self._faults) >= FAULTS_MAX:
            raise InvalidField.of("fault", f"there are {FAULTS_MAX} faults already; clear some")
        scope = fault.scope
        values = {
            "kind": fault.kind,
            "order_id": scope.order_id,
            "user_id_prefix": scope.user_id_prefix,
            "key": scope.key,
            "method": scope.method or "",
            "probability": fault.probability,
            "seed": fault.seed,
            "duration_s": fault.duration_s,
            "max_strikes": fault.limit,
        }
        self._db.execute(queries.add_fault, values)
        self._faults = self._read_faults()
        return self._faults[-1]

    def clear_faults(self, fault_id: int | None = None) -> int:
        """Forget one fault, or all. Returns how many there were."""
        gone = self._db.execute(queries.clear_faults, {"fault_id": fault_id}).rowcount
        self._faults = self._read_faults()
        return gone

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force, the oldest first."""
        return tuple(fault for fault in self._faults if not fault.spent)

    # What it shows.

    def executions(self, *, key: str = "", order_id: str = "") -> list[Execution]:
        """What was executed or refused, in order: of one key, of one order, or everything."""
        rows = self._db.execute(queries.list_executions, {"key": key, "order_id": order_id})
        return [_execution(row) for row in rows]

    def reversals(self, *, key: str = "", order_id: str = "") -> list[Reversal]:
        """What was taken back, in order; a key may be the reversal's or the original's."""
        rows = self._db.execute(queries.list_reversals, {"key": key, "order_id": order_id})
        return [
            Reversal(r["key"], r["original_key"], r["upstream_ref"], datetime.fromisoformat(r["at"]))
            for r in rows
        ]

    def pending_count(self, *, key: str = "", order_id: str = "") -> int:
        """Executions that will still happen."""
        counted = self._db.execute(queries.count_pending, {"key": key, "order_id": order_id})
        return int(counted.fetchone()[0])

    # Inside a transaction.

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            self._faults = self._read_faults()
            raise
        self._db.execute("COMMIT")

    def _strike(self, method: Method, key: str, order_id: str, user_id: str) -> Strikes:
        self._calls += 1
        struck = strikes(self._faults, Call(method, key, order_id, user_id, self._calls))
        if struck.faults:
            hit = {fault.fault_id for fault in struck.faults}
            self._db.executemany(queries.count_strike, [{"fault_id": fault_id} for fault_id in hit])
            self._faults = tuple(f.struck() if f.fault_id in hit else f for f in self._faults)
        return struck

    def _carry_out(self, ask: Submission, fate: Fate, at: datetime) -> Answer:
        if fate.after_s <= 0:
            return self._write(_columns(ask, fate.amount), fate.verdict, at)
        due_at = at + timedelta(seconds=fate.after_s)
        later = {"due_at": _text(due_at), "hidden": fate.hidden}
        self._db.execute(queries.put_off, _columns(ask, fate.amount) | later)
        return waiting(due_at, at, hidden=fate.hidden)

    def _write(self, columns: dict[str, object], verdict: Verdict, at: datetime) -> Answer:
        told = {"verdict": verdict, "ref_prefix": self._ref(str(columns["key"])), "at": _text(at)}
        return _outcome(self._db.execute(queries.add_execution, columns | told).fetchone())

    def _execute_due(self, at: datetime, key: str = "") -> int:
        ask = {"at": _text(at), "key": key, "batch": DUE_BATCH}
        due = self._db.execute(queries.take_due, ask).fetchall()
        for row in due:
            self._write(dict(row), Verdict.SUCCEEDED, at)
        return len(due)

    def _truth(self, key: str, at: datetime, *, deny: bool = True) -> Answer | None:
        """What became of a key: its first success, else its last refusal, else what is put off.

        deny: say NOT_FOUND while a hidden execution waits.
        """
        row = self._db.execute(queries.outcome, {"key": key}).fetchone()
        if row is not None:
            return _outcome(row)
        put_off = self._db.execute(queries.waiting, {"key": key}).fetchone()
        if put_off is None:
            return None
        hidden = deny and bool(put_off["hidden"])
        return waiting(datetime.fromisoformat(put_off["due_at"]), at, hidden=hidden)

    def _take_back(self, key: str, original_key: str, order_id: str, struck: Strikes, at: datetime) -> Answer:
        truth = self._truth(original_key, at) or Answer(Verdict.NOT_FOUND)
        if Kind.REJECT in struck or truth.verdict is Verdict.FAILED:
            return Answer(Verdict.FAILED, reason="cannot be taken back")
        if truth.verdict is not Verdict.SUCCEEDED:
            return truth
        upstream_ref = f"{self._ref(key)}-1"
        row = {"key": key, "original_key": original_key, "order_id": order_id, "at": _text(at)}
        self._db.execute(queries.add_reversal, row | {"upstream_ref": upstream_ref})
        return Answer(Verdict.SUCCEEDED, upstream_ref, truth.amount)

    def _reversed(self, key: str) -> Answer | None:
        row = self._db.execute(queries.reversal, {"key": key}).fetchone()
        if row is None:
            return None
        return Answer(Verdict.SUCCEEDED, row["upstream_ref"], _amount(row))

    def _user_of(self, key: str) -> str:
        row = self._db.execute(queries.user_of, {"key": key.removesuffix("/reverse")}).fetchone()
        return "" if row is None else str(row["user_id"])

    def _ref(self, key: str) -> str:
        return f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def _read_faults(self) -> tuple[Fault, ...]:
        return tuple(_fault(row) for row in self._db.execute(queries.list_faults))


def _silence(struck: Strikes) -> Reaction:
    """The reaction of an upstream that is down: the word is never sent."""
    return Reaction(Answer(Verdict.UNKNOWN), struck.delivery)


def _columns(ask: Submission, amount: Money) -> dict[str, object]:
    return {
        "key": ask.key,
        "order_id": ask.order_id,
        "leg": ask.leg,
        "attempt": ask.attempt,
        "user_id": ask.user_id,
        "amount_minor": amount.amount_minor,
        "currency_code": amount.currency_code,
    }


def _row(execution: Execution) -> dict[str, object]:
    return {
        "key": execution.key,
        "order_id": execution.order_id,
        "leg": execution.leg,
        "attempt": execution.attempt,
        "user_id": execution.user_id,
        "amount_minor": execution.amount.amount_minor,
        "currency_code": execution.amount.currency_code,
        "verdict": execution.verdict,
        "upstream_ref": execution.upstream_ref,
        "at": _text(execution.at),
    }


def _outcome(row: sqlite3.Row) -> Answer:
    if row["verdict"] == Verdict.FAILED:
        return Answer(Verdict.FAILED, row["upstream_ref"], reason="declined")
    return Answer(Verdict.SUCCEEDED, row["upstream_ref"], _amount(row))


def _amount(row: sqlite3.Row) -> Money:
    return Money(row["currency_code"], row["amount_minor"])


def _text(at: datetime) -> str:
    """An instant as text that sorts by time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _execution(row: sqlite3.Row) -> Execution:
    return Execution(
        seq=row["seq"],
        key=row["key"],
        order_id=row["order_id"],
        leg=row["leg"],
        attempt=row["attempt"],
        user_id=row["user_id"],
        amount=_amount(row),
        verdict=Verdict(row["verdict"]),
        upstream_ref=row["upstream_ref"],
        at=datetime.fromisoformat(row["at"]),
    )


def _fault(row: sqlite3.Row) -> Fault:
    method = Method(row["method"]) if row["method"] else None
    return Fault(
        kind=Kind(row["kind"]),
        scope=Scope(row["order_id"], row["user_id_prefix"], row["key"], method),
        probability=row["probability"],
        seed=row["seed"],
        duration_s=row["duration_s"],
        limit=row["max_strikes"],
        fault_id=row["fault_id"],
        strike_count=row["strike_count"],
    )
