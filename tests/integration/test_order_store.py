"""Does SQL do what the rules say, all of it or nothing, whoever else is at it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from chassis.errors import Contended
from order_svc import points
from order_svc.contract import RecoveryPolicy
from order_svc.domain import open_order
from order_svc.errors import DeadLetterNotFound, IdNotTaken, OrderNotFound, RequestIdReused
from order_svc.events import Fault, Verdict
from order_svc.order import CaseReason, Kind, Order, Outcome, Rewait, Seen, Stage, Status, Tally
from tests.conftest import DatabaseFactory
from tests.shards import EPOCH, Shard, opened
from tests.unit.orders import (
    IDEMPOTENT,
    SILENT,
    begun,
    failed_probe,
    not_sent,
    poisoned,
    redriven,
    relabelled,
    resolved,
    rules,
    told,
    unsure,
)

LEASE = timedelta(seconds=30)


@pytest.fixture
async def shard(shard_database: DatabaseFactory) -> AsyncIterator[Shard]:
    async with opened(await shard_database()) as opened_shard:
        yield opened_shard


def seen(order: Order) -> Seen:
    """Enough of a situation to make events for an order."""
    return Seen(order, None, None, order.created_at)  # type: ignore[arg-type]


async def parked(shard: Shard) -> Order:
    order = (await shard.create()).order
    tight = rules(SILENT, RecoveryPolicy(probes_max=1))
    await shard.decide(order, unsure(seen(order)))
    decided = await shard.decide(order, told(seen(order), Verdict.UNKNOWN), tight)
    assert decided.order.stage is Stage.PARKED
    return decided.order


async def test_labels_of_a_settled_order_of_months_ago_are_changed_in_one_statement(shard: Shard) -> None:
    order = (await shard.create()).order
    settled = (await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))).order
    await shard.let_pass(timedelta(days=70))
    await shard.db.execute("SELECT ordermesh.ensure_partitions()")
    event = relabelled({"shop": "ä", "gift": ""})

    changed = (await shard.decide(order, event)).order
    again = await shard.decide(order, event)

    assert again.decision is None
    assert again.order == changed == await shard.store.get(order.order_id)
    assert replace(changed, updated_at=None) == replace(
        settled, updated_at=None, version=3, labels={"shop": "ä", "gift": ""}
    )
    assert await shard.journal(order) == ["OPENED", "SETTLED", "RELABELLED"]
    (last,) = await shard.rows("SELECT kind, payload FROM outbox WHERE version = 3")
    assert (last["kind"], last["payload"]["labels"]) == ("RELABELLED", {"shop": "ä", "gift": ""})
    assert settled.settled_at is not None
    (key,) = await shard.rows("SELECT expires_at FROM idempotency_keys")
    assert key["expires_at"] == settled.settled_at + timedelta(hours=72)
    assert await shard.rows("SELECT FROM order_timers") == []


async def test_labels_of_a_waiting_order_leave_its_timer_and_lease_alone(shard: Shard) -> None:
    order = (await shard.create()).order
    await shard.decide(order, unsure(seen(order)))
    await shard.let_pass(timedelta(minutes=5))
    (claim,) = await shard.store.claim_probes(1, LEASE, "r1")
    before = await shard.rows("SELECT * FROM order_timers")
    await shard.decide(order, relabelled())
    assert await shard.rows("SELECT * FROM order_timers") == before
    done = await shard.decide(order, told(seen(order), Verdict.SUCCEEDED), lease_token=claim.lease_token)
    assert (done.order.status, done.order.labels) == (Status.SUCCESS, {"shop": "3"})


async def test_a_new_order_is_written_with_key_timer_journal_and_event_or_not_at_all(shard: Shard) -> None:
    wish = await shard.wish("payments", "fulfilment")
    change = open_order(wish, rules())
    bad = replace(change, after=replace(change.after, amount=replace(wish.amount, currency_code="eu")))
    with pytest.raises(Exception, match="went wrong"):
        await shard.store.create(bad, epoch=EPOCH, fingerprint=b"f")
    for table in ("orders", "order_timers", "order_journal", "outbox", "idempotency_keys"):
        assert await shard.value(f"SELECT count(*) FROM {table}") == 0

    created = await shard.store.create(change, epoch=EPOCH, fingerprint=b"f")

    assert not created.replayed
    assert replace(created.order, updated_at=None) == change.after
    assert await shard.store.get(wish.order_id) == created.order
    (timer,) = await shard.rows(
        "SELECT due_at - o.updated_at AS wait, class FROM order_timers JOIN orders o USING (order_id)"
    )
    assert (timer["wait"], timer["class"]) == (change.wake.wake_in if change.wake else None, "PROBE")
    (event,) = await shard.rows("SELECT payload, version, xid, stream_partition FROM outbox")
    assert event["payload"]["status"] == "PENDING"
    assert event["xid"] == created.position.xid
    assert event["stream_partition"] == wish.order_id.int >> 46 & 0xFFFF & 7


async def test_what_vendors_keep_in_a_trace_is_published_with_each_change(shard: Shard) -> None:
    wish = replace(await shard.wish(), traceparent="00-1-2-01", tracestate="congo=1")
    order = (await shard.store.create(open_order(wish, rules()), epoch=EPOCH, fingerprint=b"f")).order
    await shard.decide(order, replace(relabelled(), tracestate="rojo=2"))
    await shard.decide(order, relabelled({"shop": "4"}))
    rows = await shard.rows("SELECT tracestate FROM outbox ORDER BY version")
    assert [row["tracestate"] for row in rows] == ["congo=1", "rojo=2", ""]


async def test_an_order_whose_id_comes_too_late_is_not_written_and_its_request_gets_another(
    shard: Shard,
) -> None:
    late = open_order(await shard.wish(), rules())
    await shard.let_pass(await shard.value("SELECT ordermesh.arrives_within()"))
    with pytest.raises(IdNotTaken):
        await shard.store.create(late, epoch=EPOCH, fingerprint=b"f")
    for table in ("orders", "order_timers", "order_journal", "outbox", "idempotency_keys"):
        assert await shard.value(f"SELECT count(*) FROM {table}") == 0

    another = replace(await shard.wish(), request_id=late.after.request_id)
    created = await shard.store.create(open_order(another, rules()), epoch=EPOCH, fingerprint=b"f")
    assert created.order.order_id == another.order_id != late.after.order_id


async def test_a_submission_is_dated_by_the_shard_and_not_by_its_orders_id(shard: Shard) -> None:
    await shard.let_pass(timedelta(minutes=30))
    from_the_future = open_order(await shard.wish(), rules())
    await shard.db.execute("DELETE FROM clock_offset")

    created = await shard.store.create(from_the_future, epoch=EPOCH, fingerprint=b"f")

    (timer,) = await shard.rows("SELECT first_sent_at, last_sent_at FROM order_timers")
    took = timedelta(seconds=rules().contract("payments").submit_timeout_s)
    began_at = created.order.updated_at
    assert began_at is not None
    assert began_at < created.order.created_at - timedelta(minutes=29)
    assert created.tally == Tally(first_sent_at=began_at, last_sent_at=began_at + took)
    assert tuple(timer) == (began_at, began_at + took)


async def test_a_repeated_request_returns_the_first_order_and_another_body_is_refused(shard: Shard) -> None:
    first = await shard.create()
    again = open_order(replace(await shard.wish(), request_id=first.order.request_id), rules())
    replayed = await shard.store.create(again, epoch=EPOCH, fingerprint=b"f")
    assert (replayed.replayed, replayed.order) == (True, first.order)
    with pytest.raises(RequestIdReused):
        await shard.store.create(again, epoch=EPOCH, fingerprint=b"other")
    assert await shard.value("SELECT count(*) FROM orders") == 1


async def test_racing_creates_of_one_request_make_one_order(shard: Shard) -> None:
    wish = await shard.wish()
    wishes = [replace(await shard.wish(), request_id=wish.request_id) for _ in range(20)]
    made = await asyncio.gather(
        *(shard.store.create(open_order(each, rules()), epoch=EPOCH, fingerprint=b"f") for each in wishes)
    )
    assert len({created.order.order_id for created in made}) == 1
    assert sum(not created.replayed for created in made) == 1


async def test_a_key_lives_until_72_hours_after_settling_and_then_makes_a_new_order(shard: Shard) -> None:
    order = (await shard.create()).order
    again = replace(await shard.wish(), request_id=order.request_id)
    await shard.let_pass(timedelta(days=6))
    assert (await shard.store.create(open_order(again, rules()), epoch=EPOCH, fingerprint=b"f")).replayed
    await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))
    await shard.db.execute("SELECT ordermesh.ensure_partitions()")
    await shard.let_pass(timedelta(hours=71))
    assert (await shard.store.create(open_order(again, rules()), epoch=EPOCH, fingerprint=b"f")).replayed
    assert await shard.store.reap_keys(100) == 0
    await shard.let_pass(timedelta(hours=2))
    fresh = replace(await shard.wish(), request_id=order.request_id)
    made = await shard.store.create(open_order(fresh, rules()), epoch=EPOCH, fingerprint=b"other")
    assert not made.replayed
    assert made.order.order_id == fresh.order_id


async def test_reaping_deletes_expired_keys_only(shard: Shard) -> None:
    done, pending = (await shard.create()).order, (await shard.create(user_id="bob")).order
    await shard.decide(done, told(seen(done), Verdict.SUCCEEDED))
    await shard.let_pass(timedelta(hours=73))
    assert await shard.store.reap_keys(100) == 1
    assert await shard.value("SELECT order_id FROM idempotency_keys") == pending.order_id


async def test_a_settled_order_has_no_timer_and_every_version_has_journal_and_event(shard: Shard) -> None:
    order = (await shard.create("payments", "fulfilment")).order
    await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))
    ready = await shard.store.get(order.order_id)
    assert (ready.stage, ready.leg, ready.attempt) == (Stage.READY, 1, 0)
    sent = (await shard.decide(order, begun())).order
    done = (await shard.decide(order, told(seen(sent), Verdict.SUCCEEDED, upstream_ref="ref-2"))).order

    assert (done.status, done.version, done.upstream_ref) == (Status.SUCCESS, 4, "ref-2")
    assert done.settled_at == done.updated_at
    assert await shard.value("SELECT count(*) FROM order_timers") == 0
    events = await shard.store.events(order.order_id, 0, 100)
    assert [(event.version, event.kind) for event in events] == [
        (1, Kind.OPENED),
        (2, Kind.LEG_DONE),
        (3, Kind.SUBMITTED),
        (4, Kind.SETTLED),
    ]
    assert [row["version"] for row in await shard.rows("SELECT version FROM outbox ORDER BY version")] == [
        1,
        2,
        3,
        4,
    ]
    assert await shard.store.events(order.order_id, 2, 1) == events[2:3]


async def test_the_same_event_changes_an_order_once_and_the_rule_is_not_asked_again(shard: Shard) -> None:
    order = (await shard.create()).order
    event = told(seen(order), Verdict.SUCCEEDED)
    first = await shard.decide(order, event)
    assert first.is_written

    def never(_: Seen) -> Rewait:
        raise AssertionError("the rule was asked again")

    again = await shard.store.decide(order.order_id, event.event_id, never, at=points.SETTLE)
    assert (again.order, again.decision) == (first.order, None)
    assert again.position.xid >= first.position.xid


async def test_of_fifty_racing_settles_one_wins_and_the_journal_has_no_holes(shard: Shard) -> None:
    order = (await shard.create()).order
    events = [told(seen(order), Verdict.SUCCEEDED) for _ in range(50)]
    decided = await asyncio.gather(*(shard.decide(order, event) for event in events))

    assert sum(each.is_written for each in decided) == 1
    assert {each.order.status for each in decided} == {Status.SUCCESS}
    assert await shard.journal(order) == [Kind.OPENED, Kind.SETTLED]


async def test_racing_changes_that_all_write_get_versions_without_holes_or_are_told_to_come_again(
    shard: Shard,
) -> None:
    order = (await shard.create()).order
    done = (await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))).order
    late = [told(seen(done), Verdict.UNKNOWN) for _ in range(30)]
    outcomes = await asyncio.gather(*(shard.decide(done, event) for event in late), return_exceptions=True)

    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert all(isinstance(each, Contended) for each in refused)
    versions = [event.version for event in await shard.store.events(order.order_id, 0, 100)]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) == 2 + 30 - len(refused)
    assert len(refused) < 30


async def test_a_parked_order_has_one_open_case_and_a_daily_timer(shard: Shard) -> None:
    order = await parked(shard)
    case = await shard.store.dead_letter(order.order_id)
    assert (case.reason, case.severity, case.closed_at) == (CaseReason.PROBES_EXHAUSTED, 2, None)
    assert case.opened_version == order.version
    wait = await shard.value("SELECT due_at - ordermesh.clock() FROM order_timers")
    assert timedelta(hours=22) < wait < timedelta(hours=26)
    assert await shard.store.open_cases() == 1
    with pytest.raises(DeadLetterNotFound):
        await shard.store.dead_letter((await shard.create(user_id="bob")).order.order_id)


async def test_redriving_and_resolving_close_the_case_and_count_the_redrives(shard: Shard) -> None:
    order = await parked(shard)
    again = redriven()
    unknown = await shard.decide(order, again)
    assert unknown.order.stage is Stage.UNKNOWN
    closed = await shard.store.closed_case(order.order_id, again.event_id, Outcome.REDRIVEN)
    assert (closed.outcome, closed.actor, closed.redrive_count) == ("REDRIVEN", "mira", 1)
    assert await shard.value("SELECT due_at <= ordermesh.clock() FROM order_timers")

    tight = rules(SILENT, RecoveryPolicy(probes_max=1))
    await shard.decide(order, told(seen(unknown.order), Verdict.UNKNOWN), tight)
    assert (await shard.store.dead_letter(order.order_id)).redrive_count == 1
    event = resolved(Status.FAILED)
    done = await shard.decide(order, event)
    assert (done.order.status, done.order.failure_reason) == (Status.FAILED, "asked them")
    assert (await shard.store.closed_case(order.order_id, event.event_id, Outcome.FAILED)).outcome == "FAILED"
    assert await shard.store.open_cases() == 0


async def test_late_evidence_settles_a_parked_order_and_closes_its_case(shard: Shard) -> None:
    order = await parked(shard)
    done = await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))
    assert done.order.status is Status.SUCCESS
    case = await shard.store.dead_letter(order.order_id)
    assert (case.outcome, case.actor) == ("EVIDENCE", "recovery_svc")


async def test_a_case_against_a_settled_order_takes_in_further_evidence_and_stays_one(shard: Shard) -> None:
    order = (await shard.create()).order
    done = (await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))).order
    for _ in range(2):
        decided = await shard.decide(done, told(seen(done), Verdict.FAILED))
        assert decided.order.status is Status.SUCCESS
    (case,) = await shard.store.dead_letters(
        (done.created_at - timedelta(days=1), uuid4()), include_closed=True, limit=9
    )
    assert (case.reason, case.severity) == (CaseReason.CONTRADICTED, 1)
    assert await shard.value("SELECT count(*) FROM order_timers") == 0
    assert await shard.value("SELECT settled_at FROM orders") == done.settled_at


async def test_a_reopened_order_has_a_timer_again_and_its_key_lives_again(shard: Shard) -> None:
    order = (await shard.create("payments", "fulfilment")).order
    failed = (await shard.decide(order, told(seen(order), Verdict.FAILED, reason="card expired"))).order
    assert (failed.status, failed.failure_reason) == (Status.FAILED, "card expired")
    assert await shard.value("SELECT expires_at IS NOT NULL FROM idempotency_keys")
    reopened = (await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))).order
    assert (reopened.status, reopened.stage, reopened.settled_at) == (Status.PENDING, Stage.READY, None)
    assert await shard.value("SELECT class FROM order_timers") == "SUBMIT"
    assert await shard.value("SELECT expires_at IS NULL FROM idempotency_keys")


async def test_claims_hand_out_what_is_due_once_and_never_more_than_asked(shard: Shard) -> None:
    orders = [(await shard.create(user_id=f"u{n}")).order for n in range(10)]
    assert await shard.store.claim_probes(5, LEASE, "r1") == []
    await shard.let_pass(timedelta(minutes=1))
    batches = await asyncio.gather(*(shard.store.claim_probes(3, LEASE, f"r{n}") for n in range(4)))
    claimed = [claim.order.order_id for batch in batches for claim in batch]
    assert len(claimed) == len(set(claimed)) <= len(orders)
    assert all(len(batch) <= 3 for batch in batches)
    rest = await shard.store.claim_probes(100, LEASE, "r9")
    assert len(claimed) + len(rest) == 10
    assert {claim.unfinished_count for claim in rest} <= {0}
    assert await shard.store.claim_probes(100, LEASE, "r9") == []


async def test_what_a_report_settles_or_postpones_ends_its_lease(shard: Shard) -> None:
    order = (await shard.create()).order
    await shard.let_pass(timedelta(minutes=1))
    (claim,) = await shard.store.claim_probes(5, LEASE, "r1")
    silent = failed_probe(seen(order), Fault.SILENT)
    decided = await shard.decide(order, silent, lease_token=claim.lease_token)
    assert isinstance(decided.decision, Rewait)
    (timer,) = await shard.rows("SELECT * FROM order_timers")
    assert (timer["silent_count"], timer["lease_token"], timer["unfinished_count"]) == (1, None, 0)
    assert (await shard.store.get(order.order_id)).version == 1

    await shard.decide(order, silent, lease_token=claim.lease_token)
    (again,) = await shard.rows("SELECT * FROM order_timers")
    assert again["silent_count"] == 1, "a repeat of a report counts once"


async def test_lost_claims_make_suspects_which_are_handed_out_few_at_a_time(shard: Shard) -> None:
    for n in range(8):
        await shard.create(user_id=f"u{n}")
    await shard.let_pass(timedelta(minutes=1))
    assert len(await shard.store.claim_probes(8, LEASE, "r1")) == 8
    await shard.let_pass(timedelta(minutes=1))
    suspects = await shard.store.claim_probes(8, LEASE, "r2")
    assert [claim.unfinished_count for claim in suspects] == [1, 1]
    await shard.create(user_id="fresh")
    await shard.let_pass(timedelta(seconds=20))
    counts = sorted(claim.unfinished_count for claim in await shard.store.claim_probes(8, LEASE, "r2"))
    assert counts == [0, 1, 1]
    event = poisoned()
    decided = await shard.decide(suspects[0].order, event)
    assert decided.order.stage is Stage.PARKED


async def test_one_order_is_claimed_due_or_not_unless_somebody_has_it(shard: Shard) -> None:
    order = (await shard.create()).order
    (claim,) = await shard.store.claim_one(order.order_id, LEASE, "r1")
    assert claim.order == order
    assert await shard.store.claim_one(order.order_id, LEASE, "r2") == []
    await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))
    assert await shard.store.claim_one(order.order_id, LEASE, "r2") == []


async def test_holds_keep_claims_away_until_lifted_or_expired_and_repeats_change_nothing(
    shard: Shard,
) -> None:
    await shard.create("payments")
    await shard.create("fulfilment", user_id="bob")
    await shard.let_pass(timedelta(minutes=1))
    hold_id, lift_id = uuid4(), uuid4()
    hold = await shard.store.put_hold(hold_id, "upstream:payments", "maintenance", "mira", None)
    assert hold == await shard.store.put_hold(hold_id, "upstream:payments", "maintenance", "mira", None)
    claimed = await shard.store.claim_probes(9, LEASE, "r1")
    assert [claim.order.upstream for claim in claimed] == ["fulfilment"]
    due = await shard.store.list_due(
        (hold.created_at - timedelta(days=1), uuid4()), overdue_only=False, limit=9
    )
    assert {each.order.upstream: each.hold_reason for each in due} == {
        "payments": "maintenance",
        "fulfilment": "",
    }

    lifted = await shard.store.lift_hold(lift_id, "upstream:payments", "mira", "done")
    assert lifted == hold
    assert await shard.store.lift_hold(lift_id, "upstream:payments", "mira", "done") == hold
    assert await shard.store.lift_hold(uuid4(), "upstream:payments", "mira", "done") is None
    until = await shard.value("SELECT ordermesh.clock() + interval '1 hour'")
    await shard.store.put_hold(uuid4(), "all", "brake", "recovery_svc", None)
    replaced = await shard.store.put_hold(uuid4(), "all", "incident", "mira", until)
    assert await shard.store.holds() == [replaced]
    assert await shard.store.claim_probes(9, LEASE, "r1") == []
    await shard.let_pass(timedelta(hours=2))
    assert len(await shard.store.claim_probes(9, LEASE, "r1")) == 2


async def test_ready_orders_are_claimed_for_submission_by_upstream_and_not_for_probes(shard: Shard) -> None:
    order = (await shard.create("payments", "fulfilment")).order
    await shard.decide(order, told(seen(order), Verdict.SUCCEEDED))
    assert await shard.store.claim_probes(9, LEASE, "r1") == []
    assert await shard.store.claim_submissions(9, LEASE, "o1", "payments") == []
    (claim,) = await shard.store.claim_submissions(9, LEASE, "o1", "fulfilment")
    assert claim.order.leg == 1
    sent = await shard.decide(order, begun())
    assert sent.order.stage is Stage.SUBMITTING
    assert not (await shard.decide(order, begun())).is_written


async def test_ready_orders_are_unserved_once_long_overdue_for_an_upstream_not_known_and_not_held(
    shard: Shard,
) -> None:
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    known, order = [(await shard.create(leg, user_id=leg)).order for leg in ("payments", "removed")]
    for each in (known, order):
        await shard.decide(each, not_sent(seen(each)))
    assert await shard.store.unserved(["payments"], minute, 9) == [], "somebody else may come yet"
    await shard.let_pass(2 * minute)
    assert await shard.store.unserved(["payments"], minute, 9) == [order.order_id]
    assert await shard.store.unserved(["payments", "removed"], minute, 9) == []
    await shard.store.put_hold(uuid4(), "upstream:removed", "being moved", "mira", None)
    assert await shard.store.unserved(["payments"], minute, 9) == []
    await shard.store.lift_hold(uuid4(), "upstream:removed", "mira", "done")
    await shard.store.claim_submissions(9, hour, "d1", "removed")
    assert await shard.store.unserved(["payments"], minute, 9) == [], "a process that knows it has it"


async def test_waiting_orders_are_counted_and_paged_from_the_most_overdue(shard: Shard) -> None:
    for n in range(5):
        await shard.create(user_id=f"u{n}")
    await shard.let_pass(timedelta(minutes=1))
    resend = (await shard.create(user_id="bob")).order
    await shard.decide(resend, unsure(seen(resend)))
    await shard.decide(resend, told(seen(resend), Verdict.NOT_FOUND), rules(IDEMPOTENT))
    start = (resend.created_at - timedelta(days=1), uuid4())
    pages, after = [], start
    while page := await shard.store.list_due(after, overdue_only=False, limit=2):
        pages.append(page)
        after = (page[-1].due_at, page[-1].order.order_id)
    listed = [due.due_at for page in pages for due in page]
    assert (len(listed), listed) == (6, sorted(listed))
    assert len(await shard.store.list_due(start, overdue_only=True, limit=9)) == 6
    counts = {line.stage: (line.count, line.overdue) for line in await shard.store.waiting()}
    assert counts == {"SUBMITTING": (5, 5), "READY": (1, 1)}


async def test_some_orders_are_read_at_once_and_missing_ones_are_missing(shard: Shard) -> None:
    orders = [(await shard.create(user_id=f"u{n}")).order for n in range(3)]
    absent = (await shard.wish()).order_id
    found = await shard.store.get_many([*(order.order_id for order in orders), absent])
    assert sorted(found, key=lambda order: order.user_id) == orders
    with pytest.raises(OrderNotFound):
        await shard.store.get(absent)
    with pytest.raises(OrderNotFound):
        await shard.store.events(absent, 0, 10)
