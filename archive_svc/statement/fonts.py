"""Which fonts a PDF needs for its texts, and what stands for a character that none of them has.

Fonts are looked at in one order, and only those are taken that have something the ones before lack: so a
text in English costs one font. What none has, such as a letter of a dead script, becomes U+FFFD, which can be
seen; what has no shape of its own is left out. The CSV has every character as it was.
"""

from __future__ import annotations

import io
import unicodedata
from contextlib import closing
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer

if TYPE_CHECKING:
    from collections.abc import Iterable, Set
    from pathlib import Path

REPLACEMENT = "\ufffd"
JOINERS = frozenset("\u200c\u200d")
"""Zero-width: they say how the letters beside them are joined, so they belong to the font of these."""
_SCRIPTS = (
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam"),
    *("Sinhala", "Arabic", "Hebrew", "Thai", "Lao", "Khmer", "Myanmar", "Georgian", "Armenian", "Ethiopic"),
)
_FILES = {
    "sans": "NotoSans[wght].ttf",
    **{script.lower(): f"NotoSans{script}[wght].ttf" for script in _SCRIPTS},
    "symbols": "NotoSansSymbols[wght].ttf",
    "emoji": "NotoEmoji[wght].ttf",
}
_CJK = "NotoSansCJK-VF.otf.ttc"
_REGULAR = {"wght": 400}
# What Chinese, Japanese and Korean need no more once each character has its shape.
_NOT_OF_LINES = ["BASE", "GPOS", "GSUB", "VORG", "vhea", "vmtx"]


class Face(NamedTuple):
    """A font to draw with. name: of the PDF's; the first one is `sans`, always there."""

    name: str
    path: Path


class Fonts(NamedTuple):
    """The fonts that texts need, in the order in which they are asked, and every character that they have."""

    faces: tuple[Face, ...]
    drawn: frozenset[str]

    def shown(self, text: str) -> str:
        """A text as it can be drawn: what cannot is seen to be missing."""
        composed = unicodedata.normalize("NFC", text)
        return "".join(
            each if each in self.drawn or each in JOINERS else REPLACEMENT
            for each in composed
            if not _is_invisible(each)
        )


def fonts_for(texts: Iterable[str], directory: Path) -> Fonts:
    """The fonts that these texts need. directory: takes a font that is made for them out of a large one."""
    composed = {each for text in texts for each in unicodedata.normalize("NFC", text)}
    wanted = {each for each in composed - JOINERS if not _is_invisible(each)}
    faces: list[Face] = []
    drawn: set[str] = set()
    for name, file in _FILES.items():
        path = _file("manimgx_fonts", file)
        with closing(TTFont(path, lazy=True)) as font:
            has = _has(font, wanted - drawn)
        if has or name == "sans":
            faces.append(Face(name, path))
            drawn |= has
    if left := wanted - drawn:
        path = directory / "cjk.otf"
        if has := _of_cjk(left, path):
            faces.append(Face("cjk", path))
            drawn |= has
    return Fonts(tuple(faces), frozenset(drawn))


def _of_cjk(wanted: Set[str], path: Path) -> set[str]:
    """Write a small font of Chinese, Japanese and Korean: only these characters. Returns those it has."""
    with closing(
        TTFont(_file("manimgx_fonts_cjk", _CJK), fontNumber=0, lazy=True, recalcTimestamp=False)
    ) as font:
        has = _has(font, wanted)
        if not has:
            return has
        options = subset.Options(layout_features=[], hinting=False, desubroutinize=True, notdef_outline=True)
        options.drop_tables += _NOT_OF_LINES
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes={ord(each) for each in has})
        cutter.subset(font)
        small = io.BytesIO()
        font.save(small)
    # Read again, as the whole font's tables are of no use for what is left; it is thin as it comes.
    left = TTFont(small, recalcTimestamp=False)
    with closing(instancer.instantiateVariableFont(left, _REGULAR)) as regular:
        regular.save(path)
    return has


def _has(font: TTFont, wanted: Set[str]) -> set[str]:
    return {each for each in wanted if ord(each) in font.getBestCmap()}


def _is_invisible(char: str) -> bool:
    """Whether nothing is seen where this stands: it only says how to draw what is before it."""
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def _file(package: str, name: str) -> Path:
    with resources.as_file(resources.files(package) / name) as path:
        return path
