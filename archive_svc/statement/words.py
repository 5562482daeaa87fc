"""What a statement says for people, in each language. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one language; those with braces take values.

    statuses: what an order's status is called.
    """

    title: str
    user: str
    period: str
    until: str
    as_of: str
    number: str
    source: str
    all_live: str
    archived: str
    totals: str
    currency: str
    status: str
    orders: str
    amount: str
    created: str
    order: str
    description: str
    reference: str
    none: str
    page: str
    too_many: str
    files: str
    correction: str
    statuses: Mapping[str, str]


WORDS: Mapping[str, Words] = {
    "en": Words(
        title="Statement of orders",
        user="User",
        period="Period",
        until="{since} until before {until} ({zone})",
        as_of="As of",
        number="Orders",
        source="Source",
        all_live="All orders come from the live tables.",
        archived="{orders} orders come from the archive ({months}), the others from the live tables.",
        totals="Totals",
        currency="Currency",
        status="Status",
        orders="Orders",
        amount="Amount",
        created="Created",
        order="Order",
        description="Description",
        reference="Reference",
        none="There are no orders in this period.",
        page="Page {page} of {pages}",
        too_many="The PDF has the totals alone: it lists {most} orders at most. The CSV has them all.",
        files="SHA-256 of the files",
        correction="corrected",
        statuses={"PENDING": "pending", "SUCCESS": "successful", "FAILED": "failed"},
    ),
    "hi": Words(
        title="ऑर्डर विवरणी",
        user="उपयोगकर्ता",
        period="अवधि",
        until="{since} से {until} के पहले तक ({zone})",
        as_of="इस समय की स्थिति",
        number="ऑर्डर",
        source="स्रोत",
        all_live="सभी ऑर्डर चालू तालिकाओं से हैं।",
        archived="{orders} ऑर्डर संग्रह से हैं ({months}), बाकी चालू तालिकाओं से।",
        totals="कुल योग",
        currency="मुद्रा",
        status="स्थिति",
        orders="ऑर्डर",
        amount="राशि",
        created="समय",
        order="ऑर्डर",
        description="विवरण",
        reference="संदर्भ",
        none="इस अवधि में कोई ऑर्डर नहीं है।",
        page="पृष्ठ {page} / {pages}",
        too_many="PDF में केवल कुल योग हैं: उसमें अधिक से अधिक {most} ऑर्डर दिखते हैं। CSV में सभी ऑर्डर हैं।",
        files="फ़ाइलों का SHA-256",
        correction="संशोधित",
        statuses={"PENDING": "लंबित", "SUCCESS": "सफल", "FAILED": "विफल"},
    ),
}
