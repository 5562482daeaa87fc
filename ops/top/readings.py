"""What every process of a stack shows at one moment, and how fast it changed since another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ops.stack.endpoints import Endpoints

SCRAPE_S: Final = 2.0
BYTES_MAX: Final = 4 * 1024 * 1024
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Process:
    """One process's series at one moment. name: of the second of a kind with `#2`. away: it shows nothing."""

    name: str
    away: bool = False
    series: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def goes_by(self, name: str) -> bool:
        """Whether a name is its own, or of its kind."""
        return name in (self.name, self.name.partition("#")[0])


@dataclass(frozen=True, slots=True)
class Reading:
    """All processes at one moment. at: on the monotonic clock."""

    at: float
    processes: tuple[Process, ...]

    def values(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Every series of a name that has these labels, the name of its process being one of them."""
        of = labels.pop("process", None)
        wanted = set(labels.items())
        return [
            (dict(key) | {"process": process.name}, value)
            for process in self.processes
            if of is None or process.goes_by(of)
            for key, value in process.series.get(name, {}).items()
            if wanted <= key
        ]

    def most(self, name: str, **labels: str) -> float | None:
        """The greatest value, or none where nobody shows one."""
        return max((value for _, value in self.values(name, **labels)), default=None)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum, or none where nobody shows one."""
        found = [value for _, value in self.values(name, **labels)]
        return sum(found) if found else None

    def agreed(self, name: str, **labels: str) -> float | None:
        """The sum of what several processes look at alike: of each label set the greatest that one shows."""
        greatest: dict[Labels, float] = {}
        for key, value in self.values(name, **labels):
            of_all = frozenset(item for item in key.items() if item[0] != "process")
            greatest[of_all] = max(value, greatest.get(of_all, value))
        return sum(greatest.values()) if greatest else None

    def shows(self, process: str) -> bool:
        """Whether a process shows anything."""
        return any(each.goes_by(process) and not each.away for each in self.processes)


@dataclass(frozen=True, slots=True)
class Change:
    """Two readings, the later one being now."""

    before: Reading
    now: Reading

    def saw(self, process: str) -> bool:
        """Whether a process showed something both times, so that its rates are known."""
        return self.before.shows(process) and self.now.shows(process)

    def rate(self, name: str, **labels: str) -> float:
        """How much counters grew a second; one that was set back counts from zero.

        A process that was not seen before has no rate: all that it ever counted did not come just now.
        """
        return sum(grown for _, grown in self._grown(name, labels)) / self._s

    def rates(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """The same for each value of a label, the greatest first; those that did not grow are left out."""
        found: defaultdict[str, float] = defaultdict(float)
        for key, grown in self._grown(name, labels):
            found[key.get(by, "")] += grown / self._s
        return {value: rate for value, rate in sorted(found.items(), key=lambda item: -item[1]) if rate > 0}

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """The bound that a share of a histogram's observations stayed below; none without any."""
        counts: defaultdict[float, float] = defaultdict(float)
        for key, grown in self._grown(f"{name}_bucket", labels):
            counts[float(key["le"])] += grown
        bounds = sorted(counts)
        if not bounds or counts[bounds[-1]] <= 0:
            return None
        return next(bound for bound in bounds if counts[bound] >= share * counts[bounds[-1]])

    @property
    def _s(self) -> float:
        return max(self.now.at - self.before.at, 0.001)

    def _grown(self, name: str, labels: Mapping[str, str]) -> Iterable[tuple[dict[str, str], float]]:
        before = {frozenset(key.items()): value for key, value in self.before.values(name, **labels)}
        known = {process.name for process in self.before.processes if not process.away}
        for key, value in self.now.values(name, **labels):
            if key["process"] not in known:
                continue
            earlier = before.get(frozenset(key.items()), 0.0)
            yield key, value - earlier if value >= earlier else value


async def read(endpoints: Endpoints, *, only: str = "") -> Reading:
    """Ask every process of a stack at once, or those of one service; one that does not answer is away."""
    kinds: Counter[str] = Counter()
    named = []
    for each in endpoints.services:
        if each.metrics_url and only in ("", each.name):
            kind = f"{each.name}.{each.shard}" if each.shard else each.name
            kinds[kind] += 1
            named.append((kind if kinds[kind] == 1 else f"{kind}#{kinds[kind]}", each.metrics_url))
    async with httpx.AsyncClient(timeout=SCRAPE_S) as client:
        found = await asyncio.gather(*(_scrape(client, name, url) for name, url in named))
    return Reading(time.monotonic(), tuple(found))


async def _scrape(client: httpx.AsyncClient, name: str, url: str) -> Process:
    try:
        answer = await client.get(url)
        text = answer.text if len(answer.content) <= BYTES_MAX else ""
    except httpx.HTTPError:
        return Process(name, away=True)
    return parsed(name, text) if answer.status_code == httpx.codes.OK and text else Process(name, away=True)


def parsed(name: str, text: str) -> Process:
    """A process from the text of its metrics; a text that is none is a process that is away."""
    series: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series[sample.name][frozenset(sample.labels.items())] = sample.value
    except ValueError:
        return Process(name, away=True)
    return Process(name, series=series)
