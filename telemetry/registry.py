"""Every metric with its name, type, labels, unit, meaning and owner, as telemetry/*.toml lists them.

Nothing at run time reads the registry: `scripts/telemetry.py` turns it into `metrics.py` of each package, and
`scripts/docs.py` into docs/TELEMETRY.md. Fails with RegistryError, which names the entry.
"""

from __future__ import annotations

import importlib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
UNITS = ("seconds", "bytes", "rows", "records", "orders")
PERSONS = frozenset(
    {
        "user",
        "user_id",
        "order",
        "order_id",
        "sub",
        "subject",
        "path",
        "url",
        "address",
        "email",
        "bucket",
        "id",
    }
)
"""Label names that would make a series for each user or order."""
Kind = Literal["counter", "gauge", "histogram"]


class RegistryError(Exception):
    """An entry of the registry is wrong."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a label may say.

    values: all of them, where they are listed. known: whose values a process says at start. bounded: why they
    are few, where nobody lists them.
    """

    name: str
    values: tuple[str, ...] = ()
    known: str = ""
    bounded: str = ""

    @property
    def meaning(self) -> str:
        """For people."""
        return (
            self.known
            or self.bounded
            or ", ".join(f"`{value}`" if value else "empty" for value in self.values)
        )


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    package: whose metrics.py defines it, as `constant`. labels: the vocabulary of each. sparse: why its label
    sets are not prepared, empty where they are.
    """

    package: str
    constant: str
    name: str
    kind: Kind
    labels: dict[str, Vocabulary]
    meaning: str
    buckets: tuple[float, ...] = ()
    sparse: str = ""

    @property
    def owner(self) -> str:
        """The service that counts it."""
        return self.package.partition(".")[0]

    @property
    def unit(self) -> str:
        """What a value is in; empty for plain counts."""
        words = self.name.removesuffix("_total").split("_")
        return words[-1] if words[-1] in UNITS else ""


@cache
def vocabularies() -> dict[str, Vocabulary]:
    """Every vocabulary by its name."""
    return {name: _vocabulary(name, entry) for name, entry in _read(HERE / "vocabularies.toml").items()}


@cache
def metrics() -> tuple[Metric, ...]:
    """Every metric, package by package."""
    found = tuple(
        _metric(path.stem, constant, entry)
        for path in sorted((HERE / "metrics").glob("*.toml"))
        for constant, entry in _read(path).items()
    )
    names = [metric.name for metric in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RegistryError(f"registered twice: {', '.join(sorted(twice))}")
    return found


def packages() -> dict[str, list[Metric]]:
    """The metrics of each package, in the order of the registry."""
    return {
        package: [metric for metric in metrics() if metric.package == package]
        for package in dict.fromkeys(metric.package for metric in metrics())
    }


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _vocabulary(name: str, entry: dict[str, Any]) -> Vocabulary:
    kinds = [kind for kind in ("values", "enum", "known", "bounded") if kind in entry]
    if len(kinds) != 1 or entry.keys() - {*kinds, "also", "more"}:
        raise RegistryError(f"vocabulary {name} must have one of values, enum, known and bounded")
    values = [*entry.get("values", ())]
    for place in (entry.get("enum"), entry.get("also")):
        values += _members(place) if place else []
    values += entry.get("more", ())
    return Vocabulary(
        name, tuple(dict.fromkeys(values)), known=entry.get("known", ""), bounded=entry.get("bounded", "")
    )


def _members(place: str) -> list[str]:
    """The values of an enumeration `module:Class`; of gRPC's codes, whose values are numbers, the names."""
    module, _, name = place.partition(":")
    members = list(getattr(importlib.import_module(module), name))
    return [member.value if isinstance(member.value, str) else member.name for member in members]


def _metric(package: str, constant: str, entry: dict[str, Any]) -> Metric:
    where = f"{package}.{constant}"
    if entry.keys() - {"name", "type", "labels", "meaning", "buckets", "sparse"}:
        raise RegistryError(f"{where} has a field that nobody knows")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", constant):
        raise RegistryError(f"{where} is no name of a constant")
    try:
        labels = {label: vocabularies()[name] for label, name in entry.get("labels", {}).items()}
    except KeyError as unknown:
        raise RegistryError(f"{where} uses the vocabulary {unknown}, which is not listed") from None
    metric = Metric(
        package=package,
        constant=constant,
        name=entry["name"],
        kind=entry["type"],
        labels=labels,
        meaning=entry["meaning"],
        buckets=tuple(entry.get("buckets", ())),
        sparse=entry.get("sparse", ""),
    )
    if wrong := list(_wrong(metric)):
        raise RegistryError(f"{where}: {'; '.join(wrong)}")
    return metric


def _wrong(metric: Metric) -> list[str]:
    """What is wrong with an entry, in words."""
    found = []
    if metric.kind not in ("counter", "gauge", "histogram"):
        found.append(f"{metric.kind} is no type")
    if (metric.kind == "counter") != metric.name.endswith("_total"):
        found.append("a counter, and nothing else, ends with _total")
    if (metric.kind == "histogram") != bool(metric.buckets):
        found.append("a histogram, and nothing else, has buckets")
    if list(metric.buckets) != sorted(set(metric.buckets)):
        found.append("buckets go up")
    if metric.kind == "histogram" and not metric.unit:
        found.append(f"a histogram's name ends with a unit: {', '.join(UNITS)}")
    if persons := PERSONS & metric.labels.keys():
        found.append(f"one series for each {', '.join(sorted(persons))} fills Prometheus")
    if not metric.meaning.endswith("."):
        found.append("its meaning is a sentence")
    unlisted = [label for label, vocabulary in metric.labels.items() if vocabulary.bounded]
    if metric.kind != "gauge" and unlisted and not metric.sparse:
        found.append(f"label sets of {', '.join(unlisted)} cannot be prepared: say why in `sparse`")
    if metric.kind == "gauge" and metric.sparse:
        found.append("label sets of gauges are never prepared")
    return found
