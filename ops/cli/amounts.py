"""Money as people type it: `12.50EUR`, `12.50 EUR`, `1000JPY`."""

from __future__ import annotations

import re

import typer

from chassis.money import AMOUNT_MINOR_MAX
from chassis.money import Money as Amount

__all__ = ["Amount", "parse"]

_TYPED = re.compile(r"(\d{1,16})(?:\.(\d{1,4}))?\s*([A-Za-z]{3})")


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
