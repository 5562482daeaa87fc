"""Money as an integer of minor units; no float ever touches an amount."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chassis.errors import InvalidField

AMOUNT_MINOR_MAX = 10**15
"""One order's largest amount. Leaves room for nine thousand such orders in a 64 bit sum."""
_CODE = re.compile(r"[A-Z]{3}")
_EXPONENTS = (
    dict.fromkeys(
        (
            "BIF",
            "CLP",
            "DJF",
            "GNF",
            "ISK",
            "JPY",
            "KMF",
            "KRW",
            "PYG",
            "RWF",
            "UGX",
            "UYI",
            "VND",
            "VUV",
            "XAF",
            "XOF",
            "XPF",
        ),
        0,
    )
    | dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3)
    | dict.fromkeys(("CLF", "UYW"), 4)
)
"""Digits behind the point where ISO 4217 says other than two."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in the smallest unit of its currency."""

    currency_code: str
    amount_minor: int

    @property
    def exponent(self) -> int:
        """How many digits stand behind the point when a person reads it."""
        return _EXPONENTS.get(self.currency_code, 2)

    def __str__(self) -> str:
        whole, part = divmod(abs(self.amount_minor), 10**self.exponent)
        sign = "-" if self.amount_minor < 0 else ""
        cents = f".{part:0{self.exponent}d}" if self.exponent else ""
        return f"{sign}{whole}{cents} {self.currency_code}"


def asked_for(currency_code: str, amount_minor: int) -> Money:
    """Money that an order asks for: a currency of three capitals and 1 to 10^15 minor units.

    Raises: InvalidField.
    """
    if not _CODE.fullmatch(currency_code):
        raise InvalidField.of("amount.currency_code", "must be an ISO 4217 code such as EUR")
    if not 1 <= amount_minor <= AMOUNT_MINOR_MAX:
        raise InvalidField.of("amount.amount_minor", f"must be 1 to {AMOUNT_MINOR_MAX} minor units")
    return Money(currency_code, amount_minor)
