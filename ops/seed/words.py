"""What people write on their orders: descriptions for text search to find, and labels. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

THINGS = (
    "bicycle", "teapot", "atlas", "lantern", "keyboard", "notebook", "umbrella", "telescope", "hammock",
    "guitar", "compass", "backpack", "espresso machine", "chess set", "rain jacket", "desk lamp", "Fahrradöl",
    "crème brûlée set", "Zoë's café voucher", "sauna towel", "jeu de boules", "книга", "茶壺",
)  # fmt: skip
QUALITIES = ("blue", "small", "used", "hand-made", "foldable", "wooden", "spare", "heavy", "wool", "gift")
REASONS = ("card expired", "insufficient funds", "declined", "limit reached", "address unknown")
"""What upstreams say when they refuse."""
SHOPS = ("berlin-1", "berlin-2", "lisboa", "tokyo", "online")
BARE_SHARE = 0.1
"""Orders without any description."""
CARTS = 10_000


def description(draw: random.Random) -> str:
    """One to four words, or nothing."""
    if draw.random() < BARE_SHARE:
        return ""
    count = draw.choice((1, 1, 1, 2, 3, 12))
    quality = f"{draw.choice(QUALITIES)} " if draw.random() < 0.6 else ""
    times = f"{count} x " if count > 1 else ""
    return f"{times}{quality}{draw.choice(THINGS)}"


def labels(draw: random.Random) -> dict[str, str]:
    """Some shop, perhaps a cart, rarely more."""
    found = {"shop": draw.choice(SHOPS)}
    if draw.random() < 0.5:
        found["cart"] = str(draw.randrange(CARTS))
    if draw.random() < 0.05:
        found["gift"] = "yes"
    return found
