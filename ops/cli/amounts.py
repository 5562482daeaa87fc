"""Money as people type it: `12.50EUR`, `12.50 EUR`, `1000JPY`; and ranges of it: `EUR:10..20`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import typer

from chassis.money import AMOUNT_MINOR_MAX
from chassis.money import Money as Amount

__all__ = ["Amount", "Range", "parse", "parse_range"]

_CURRENCY = re.compile(r"[A-Za-z]{3}", re.ASCII)
_TYPED = re.compile(r"(\d{1,16})(?:\.(\d{1,4}))?\s*([A-Za-z]{3})")


@dataclass(frozen=True, slots=True)
class Range:
    """Amounts of one currency, both ends included; 0 for an open end."""

    currency_code: str
    min_minor: int = 0
    max_minor: int = 0


def parse(text: str | Amount) -> Amount:
    """Read an amount; never through a float.

    Raises: BadParameter: no number, no currency, more decimals than the currency has, nothing or too much.
    """
    if isinstance(text, Amount):
        return text
    found = _TYPED.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no amount; write it as 12.50EUR or 1000JPY")
    whole, decimals, currency = found[1], found[2] or "", found[3].upper()
    digits = Amount(currency, 0).exponent
    if len(decimals) > digits:
        raise typer.BadParameter(f"{text!r}: {currency} has {digits} decimals")
    minor = int(whole + decimals.ljust(digits, "0"))
    if not 1 <= minor <= AMOUNT_MINOR_MAX:
        raise typer.BadParameter(f"{text!r}: an order's amount is 1 to {AMOUNT_MINOR_MAX} minor units")
    return Amount(currency, minor)


def parse_range(text: str | Range) -> Range:
    """Read a range: `EUR:10..20`, with one end open `EUR:10..`, one amount `EUR:12.50`, a currency `EUR`.

    Raises: BadParameter, also for a range that holds nothing.
    """
    if isinstance(text, Range):
        return text
    currency, is_more, rest = text.strip().partition(":")
    least, is_range, most = rest.partition("..")
    if not is_range:
        most = least
    if not _CURRENCY.fullmatch(currency) or (is_more and not least and not most):
        raise typer.BadParameter(f"{text!r} is no range of amounts; write it as EUR:10..20 or EUR:12.50")
    ends = [parse(f"{end}{currency}").amount_minor if end else 0 for end in (least, most)]
    if 0 < ends[1] < ends[0]:
        raise typer.BadParameter(f"{text!r}: nothing is between {least} and {most}")
    return Range(currency.upper(), *ends)
