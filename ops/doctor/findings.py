"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Word(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. fix: what to do; only empty with OK."""

    check: str
    word: Word
    detail: str
    fix: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, Word.OK, detail)


def warn(check: str, detail: str, fix: str) -> Finding:
    """It works, but not for long, or not well."""
    return Finding(check, Word.WARN, detail, fix)


def bad(check: str, detail: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(check, Word.BAD, detail, fix)
