"""Walkers against a list of the test's own, which is right or wrong, slow to answer or silent."""

import asyncio
import random
from dataclasses import dataclass, field
from itertools import count

import pytest

from ops.load.walk import walkers
from ops.load.walk.book import Book, Freshness
from ops.load.walk.figures import Walked, rows, told
from ops.load.walk.judge import Asked, Page, Row
from ops.load.walk.readers import NoAnswer, PageRefused
from ops.load.walk.walkers import FOUND_MAX, TRIES_MAX, Walker

USER = "anna"
ORDERS = 250


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(walkers, "BACKOFF_S", 0.0)


@dataclass
class Listing:
    """A reader of a list; `fails` is what the first tries of each page raise."""

    shown: list[Row]
    fails: list[Exception] = field(default_factory=list)
    name: str = "listing"
    levels: tuple[Freshness, ...] = tuple(Freshness)
    asked: list[tuple[Asked, str]] = field(default_factory=list)
    served_by: str = "MERGED"
    overlay: int = 1

    async def read(self, user: str, asked: Asked, after: str, token: str, *, timeout_s: float) -> Page:
        self.asked.append((asked, token))
        if self.fails:
            raise self.fails.pop(0)
        start = int(after or "0")
        end = start + asked.size
        more = str(end) if end < len(self.shown) else ""
        return Page(self.shown[start:end], more, self.served_by, self.overlay, 0.25)


def row(number: int) -> Row:
    return Row(f"{number:08x}", USER, f"request-{number}", number, 1, {})


def book(orders: int = ORDERS) -> Book:
    kept = Book([USER])
    for number in range(orders):
        kept.tell(USER, f"{number:08x}", 1, at=0.0, labels={}, token="czE6MTo3")
    return kept


def walker(*listings: Listing, orders: int = ORDERS) -> Walker:
    return Walker(book(orders), listings, Walked(), random.Random(1), pause_s=0.0)


RIGHT = [row(number) for number in reversed(range(ORDERS))]


async def test_a_walk_asks_in_every_way_and_comes_to_the_end():
    listing = Listing(RIGHT)
    one = walker(listing)
    for _ in range(20):
        assert await one.walk(USER)
    walked = one.walked
    assert (walked.finished, walked.unanswered, walked.rows) == (20, 0, 20 * ORDERS)
    assert [each.count for each in walked.findings()] == [0] * 9
    sizes = {asked.size for asked, _ in listing.asked}
    assert min(sizes) >= 1
    assert max(sizes) <= 100
    assert len(sizes) > 20
    assert {asked.freshness for asked, _ in listing.asked} == set(Freshness)
    assert {token for _, token in listing.asked} == {"czE6MTo3"}
    assert walked.pages == len(listing.asked)
    assert walked.why_void() == ""


async def test_whoever_was_told_nothing_asks_for_the_present():
    listing = Listing([])
    assert await walker(listing, orders=0).walk(USER)
    assert [asked.freshness for asked, _ in listing.asked] == [Freshness.STRONG]


async def test_a_page_that_does_not_come_is_asked_for_again_and_then_the_walk_is_unanswered():
    one = walker(Listing(RIGHT, fails=[NoAnswer("READ_MODEL_UNAVAILABLE"), NoAnswer("SHARD_UNAVAILABLE")]))
    assert await one.walk(USER)
    assert one.walked.retries == 2
    assert set(one.walked.failures) == {"READ_MODEL_UNAVAILABLE", "SHARD_UNAVAILABLE"}

    silent = walker(Listing(RIGHT, fails=[NoAnswer("UNAVAILABLE")] * TRIES_MAX))
    assert not await silent.walk(USER)
    assert (silent.walked.finished, silent.walked.unanswered) == (0, 1)
    assert sum(each.count for each in silent.walked.findings()) == 0
    assert silent.walked.why_void() == "no walk came to the end of its list"


async def test_a_refused_page_token_is_a_violation():
    one = walker(Listing(RIGHT, fails=[PageRefused("PAGE_TOKEN_INVALID")]))
    assert not await one.walk(USER)
    (wrong,) = [each for each in one.walked.findings() if each.count]
    assert (wrong.check, wrong.first[0].fact) == ("w9_refused", "PAGE_TOKEN_INVALID")


async def test_a_silently_short_list_is_a_violation():
    one = walker(Listing(RIGHT[:-1]))
    assert await one.walk(USER)
    assert {each.check: each.count for each in one.walked.findings() if each.count} == {"w1_missing": 1}
    assert told(one.walked).endswith("1 wrong")


async def test_a_list_that_never_ends_is_left_when_enough_is_known():
    listing = Listing(RIGHT * 100)
    one = walker(listing)
    assert not await one.walk(USER)
    wrong = {each.check: each.count for each in one.walked.findings() if each.count}
    assert set(wrong) == {"w2_twice"}
    assert wrong["w2_twice"] >= FOUND_MAX
    assert one.walked.rows < 5 * ORDERS


async def test_an_order_that_was_seen_has_to_be_seen_in_the_present_from_then_on():
    newer = Row(f"{ORDERS:08x}", USER, "request-new", ORDERS, 1, {})
    one = walker(Listing([newer, *RIGHT]))
    one.book.ask(USER, "request-new")
    assert await one.walk(USER)
    one.readers = [Listing(RIGHT)]
    assert await one.walk(USER, [Freshness.STRONG])
    assert {each.check: each.count for each in one.walked.findings() if each.count} == {"w1_missing": 1}


async def test_walkers_walk_until_they_are_cancelled():
    listing = Listing(RIGHT[:5])
    one = walker(listing, orders=0)
    for number in range(ORDERS):
        one.book.ask(USER, f"request-{number}")
    done = asyncio.create_task(one.run())
    for _ in count():
        if one.walked.finished > 10:
            break
        await asyncio.sleep(0)
    done.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done


@pytest.mark.parametrize(
    ("merged", "overlaid", "void"),
    [
        (5, 1, ""),
        (4, 1, "4 of 10 pages were merged, which is less than 50%"),
        (10, 0, "0 of 10 pages were overlaid, which is less than 5%"),
    ],
)
def test_a_run_is_void_without_the_seam_or_without_an_overlay(merged, overlaid, void):
    walked = Walked(finished=1)
    for number in range(10):
        page = Page([], "", "MERGED" if number < merged else "READ_MODEL", number < overlaid, 0.1 * number)
        walked.page(page, 0.01, Freshness.STRONG, "grpc")
    assert walked.why_void() == void
    said = walked.as_json()
    assert said["merged_share"] == merged / 10
    assert said["overlay_share"] == overlaid / 10
    assert said["lag_s"]["max"] == pytest.approx(0.9)
    assert ("with an overlay", f"{overlaid} ({overlaid / 10:.1%})") in rows(walked)


def test_a_run_is_void_when_a_history_was_not_compared_with_the_shards():
    walked = Walked(finished=1, to_compare=3, compared=2)
    walked.page(Page([], "", "MERGED", 1, 0.1), 0.01, Freshness.STRONG, "grpc")
    assert walked.why_void() == "2 of 3 histories could be compared with the shards"
    walked.compared = 3
    assert walked.why_void() == ""


async def test_a_walk_that_is_not_counted_still_says_what_is_wrong():
    one = walker(Listing(RIGHT[:-1]))
    one.is_counted = False
    assert await one.walk(USER)
    assert (one.walked.finished, one.walked.pages) == (0, 0)
    assert {each.check: each.count for each in one.walked.findings() if each.count} == {"w1_missing": 1}
