"""The judge of a walk: each way in which a list can be wrong is made up once, and must be named."""

from dataclasses import replace
from uuid import UUID

import pytest

from chassis import consistency
from ops.load.walk.book import BARE_AGE_S, Book, Freshness
from ops.load.walk.judge import KINDS, OVERLAY_MAX, Asked, Page, Row, Walk, refused

ANNA = "anna"
COUNT = 10
T0 = 1000.0
LATER = T0 + 60.0
SIZE = 4


def order_id(number: int) -> str:
    """Ids as the platform makes them: they sort by time."""
    return f"{number:08x}-0000-7000-8000-000000000000"


def row(number: int, version: int = 3, user: str = ANNA, **labels: str) -> Row:
    return Row(order_id(number), user, f"request-{number}", 1_000_000 * number, version, labels)


def book_of(count: int = COUNT, user: str = ANNA) -> Book:
    """Somebody who was told of `count` orders, each at version 3."""
    book = Book([user])
    for number in range(count):
        book.ask(user, f"request-{number}")
        book.tell(user, order_id(number), 3, at=T0, labels={})
    return book


def paged(rows: list[Row], size: int = SIZE) -> list[Page]:
    """A list cut into pages, the last one without a token."""
    cut = [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
    return [
        Page(each, "" if number == len(cut) else f"after-{number}", "MERGED", 0, 0.5)
        for number, each in enumerate(cut, start=1)
    ]


def newest_first(book_rows: int = COUNT) -> list[Row]:
    return [row(number) for number in reversed(range(book_rows))]


def judged(
    book: Book, pages: list[Page], freshness: Freshness = Freshness.STRONG, at: float = LATER
) -> list[tuple[str, str]]:
    """What a walk over these pages finds, as check and order id."""
    walk = Walk(ANNA, book)
    asked = Asked(at, SIZE, freshness, "grpc")
    return [(found.kind, found.broken.id) for page in pages for found in walk.judge(page, asked)]


def test_a_right_list_is_right_at_every_page_size():
    for size in (1, 2, 3, 7, 10, 100):
        walk = Walk(ANNA, book_of())
        for page in paged(newest_first(), size):
            assert walk.judge(page, Asked(LATER, size, Freshness.STRONG, "rest")) == []
        assert walk.rows == COUNT


def test_a_list_that_ends_where_the_archive_begins_answers_for_what_is_not_archived():
    cut = paged(newest_first()[:6])
    floor = UUID(order_id(4)).int >> 80
    ended = [*cut[:-1], replace(cut[-1], archived_us=floor * 1000)]
    assert judged(book_of(), ended) == []
    lower = [*cut[:-1], replace(cut[-1], archived_us=(UUID(order_id(2)).int >> 80) * 1000)]
    assert judged(book_of(), lower) == [("w1_missing", order_id(3)), ("w1_missing", order_id(2))]


def without(number: int) -> list[Page]:
    return paged([each for each in newest_first() if each != row(number)])


def swapped() -> list[Row]:
    rows = newest_first()
    rows[1], rows[2] = rows[2], rows[1]
    return rows


def put(at: int, wrong: Row) -> list[Page]:
    rows = newest_first()
    rows[at] = wrong
    return paged(rows)


BREAKS: dict[str, tuple[list[Page], str]] = {
    "w1_missing the newest": (without(9), order_id(9)),
    "w1_missing within a page": (without(7), order_id(7)),
    "w1_missing between two pages": (without(5), order_id(5)),
    "w1_missing the oldest": (without(0), order_id(0)),
    "w1_missing the list ends early": (paged(newest_first()[:4]), order_id(0)),
    "w1_missing the list is empty": (paged([]), order_id(9)),
    "w2_twice on one page": (paged([row(9), row(9), *newest_first()[1:]]), order_id(9)),
    "w2_twice on two pages": (paged([*newest_first()[:4], row(9), *newest_first()[4:]]), order_id(9)),
    "w3_order within a page": (paged(swapped()), order_id(8)),
    "w3_order over two pages": (
        [*paged(newest_first())[:1], *paged([row(11), *newest_first()[4:]])],
        order_id(11),
    ),
    "w4_stale": (put(3, row(6, version=2)), order_id(6)),
    "w5_foreign": (paged([row(10, user="ben"), *newest_first()]), order_id(10)),
    "w6_short": (
        [replace(paged(newest_first()[:2])[0], token="more"), *paged(newest_first()[2:])],
        ANNA,
    ),
    "w6_short nothing at all": ([Page([], "more", "MERGED", 0, None), *paged(newest_first())], ANNA),
    "w6_short too long": (paged(newest_first(), COUNT), ANNA),
    "w7_content": (put(3, row(6, walk="other")), order_id(6)),
    "w8_unasked": (paged([row(11), *newest_first()]), order_id(11)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_list_is_named(name):
    pages, wrong = BREAKS[name]
    assert (name.split()[0], wrong) in judged(book_of(), pages)


@pytest.mark.parametrize("name", BREAKS)
def test_one_fault_is_not_reported_as_another(name):
    pages, _ = BREAKS[name]
    allowed = {name.split()[0]} | {"w3_order over two pages": {"w8_unasked"}}.get(name, set())
    assert {kind for kind, _ in judged(book_of(), pages)} <= allowed


def test_every_check_of_a_walk_is_broken_once():
    found = refused(ANNA, Asked(LATER, SIZE, Freshness.STRONG, "rest"), 3, "PAGE_TOKEN_INVALID")
    assert {name.split()[0] for name in BREAKS} | {found.kind} == set(KINDS)


def test_an_order_without_acknowledgement_may_be_there_or_not():
    book = book_of()
    book.ask(ANNA, "request-10")
    assert judged(book, paged(newest_first())) == []
    assert judged(book, paged(newest_first(11))) == []


def test_what_was_acknowledged_after_the_question_need_not_be_there():
    book = book_of()
    book.tell(ANNA, order_id(10), 1, at=LATER + 0.01)
    book.tell(ANNA, order_id(4), 4, at=LATER + 0.01)
    assert judged(book, paged(newest_first())) == []
    assert judged(book, paged(newest_first()), at=LATER + 0.02) == [
        ("w1_missing", order_id(10)),
        ("w4_stale", order_id(4)),
    ]


@pytest.mark.parametrize("freshness", [Freshness.STRONG, Freshness.TOKEN, Freshness.AT_LEAST])
def test_a_token_and_the_present_promise_the_last_acknowledgement_at_once(freshness):
    book = book_of()
    book.tell(ANNA, order_id(4), 4, at=LATER)
    assert judged(book, paged(newest_first()), freshness) == [("w4_stale", order_id(4))]


def test_without_a_token_an_acknowledgement_is_promised_once_a_replica_must_have_it():
    book = book_of()
    book.tell(ANNA, order_id(4), 4, at=LATER)
    pages = paged(newest_first())
    assert judged(book, pages, Freshness.BARE, at=LATER + BARE_AGE_S - 0.1) == []
    assert judged(book, pages, Freshness.BARE, at=LATER + BARE_AGE_S) == [("w4_stale", order_id(4))]


def test_what_a_list_showed_is_promised_to_those_who_ask_for_the_present_alone():
    book = book_of()
    book.see(ANNA, order_id(4), 5, at=LATER)
    book.see(ANNA, order_id(10), 1, at=LATER)
    pages = paged(newest_first())
    gone = [("w1_missing", order_id(10)), ("w4_stale", order_id(4))]
    assert judged(book, pages, Freshness.STRONG) == gone
    # Nobody got a token for it.
    assert judged(book, pages, Freshness.TOKEN) == []
    assert judged(book, pages, Freshness.AT_LEAST) == []


def test_a_later_version_than_promised_is_right_and_so_are_labels_that_nobody_told_of():
    rows = newest_first()
    rows[3] = row(6, version=9, walk="later")
    assert judged(book_of(), paged(rows)) == []


def test_a_page_that_ends_where_the_overlay_does_is_not_short():
    first = replace(paged(newest_first()[:2])[0], token="more", overlay=OVERLAY_MAX)
    assert judged(book_of(), [first, *paged(newest_first()[2:])]) == []


def test_the_token_of_a_user_covers_every_write_and_no_other_users():
    book = Book([ANNA, "ben"])
    for shard, xid in (("s1", 7), ("s2", 5), ("s1", 4)):
        book.tell(ANNA, order_id(xid), 1, at=T0, token=consistency.sealed({shard: (1, xid)}))
    assert consistency.opened(book.token(ANNA)) == {"s1": (1, 7), "s2": (1, 5)}
    assert book.token("ben") == ""
    book.tell("nobody we walk", order_id(1), 1, at=T0)
    assert book.users == [ANNA, "ben"]
