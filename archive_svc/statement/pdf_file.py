"""A statement as PDF. The only place that knows fpdf2; it runs as a process of its own, which can be ended.

    python -m archive_svc.statement.pdf_file < paper.json > statement.pdf

The same paper gives the same bytes. A character that no font here has is shown as missing; the CSV has it.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fpdf import FPDF
from fpdf import fpdf as engine
from fpdf.fonts import TTFFont
from fpdf.unicode_script import UnicodeScript, get_unicode_script

from archive_svc.statement.fonts import JOINERS, Fonts, fonts_for

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARGIN = 12.0
_BOTTOM = 15.0
_ROW = 5.0
_FACT = 6.0
_HEAD = 9.0
_GREY = 110
# Widths in mm, 273 in all; an order's id is 36 characters of hexadecimal.
_ROW_WIDTHS = (27.0, 57.0, 88.0, 38.0, 20.0, 43.0)
_TOTAL_WIDTHS = (27.0, 40.0, 30.0, 50.0)
_FACT_WIDTH = 45.0


class Line(NamedTuple):
    """Something that has a page's width for itself. is_number: the last of its cells stands to the right."""

    cells: tuple[str, ...]
    widths: tuple[float, ...]
    height: float
    size: float
    is_head: bool = False
    is_number: bool = False


def lines_of(told: dict[str, Any]) -> list[Line]:
    """Everything on the paper, from top to bottom, without page breaks."""
    found = [Line((told["title"],), (273.0,), 11.0, 16.0)]
    found += [Line(tuple(fact), (_FACT_WIDTH, 273.0 - _FACT_WIDTH), _FACT, 9.0) for fact in told["facts"]]
    found.append(Line((told["totals_title"],), (273.0,), _HEAD, 12.0))
    if len(told["totals"]) == 1:
        return [*found, Line((told["none"],), (273.0,), _FACT, 9.0)]
    for number, total in enumerate(told["totals"]):
        found.append(Line(tuple(total), _TOTAL_WIDTHS, _FACT, 9.0, is_head=not number, is_number=True))
    found.append(Line((), (), _HEAD, 9.0))
    if told["note"]:
        return [*found, Line((told["note"],), (273.0,), _FACT, 9.0)]
    for number, row in enumerate(told["rows"]):
        found.append(Line(tuple(row), _ROW_WIDTHS, _ROW, 7.5, is_head=not number, is_number=True))
    return found


def pages_of(lines: list[Line], height: float) -> list[list[Line]]:
    """The lines cut into pages; each page that begins within the orders begins with their head."""
    head = next((line for line in reversed(lines) if line.is_head), None)
    pages: list[list[Line]] = [[]]
    left = height
    for line in lines:
        if line.height > left:
            pages.append([])
            left = height
            if head is not None and line.widths == head.widths and not line.is_head:
                pages[-1].append(head)
                left -= head.height
        pages[-1].append(line)
        left -= line.height
    return pages


class Writer(FPDF):
    """Draws joiners in the font of the letters that they join, and with these at once."""

    _last: str | None = None

    def take(self, fonts: Fonts) -> None:
        """Draw in these fonts."""
        for name, path in fonts.faces:
            self.add_font(name, fname=path)
        sans = self.fonts["sans"]
        assert isinstance(sans, TTFFont), "it comes from a file"
        for joiner in JOINERS:
            sans.cmap.pop(ord(joiner), None)
        self.set_fallback_fonts([face.name for face in fonts.faces[1:]], exact_match=False)
        self.set_font("sans", size=9)
        self.set_text_shaping(True)

    def get_fallback_font(self, char: str, style: str = "") -> str | None:
        """The font of a character that `sans` lacks."""
        if char not in JOINERS:
            self._last = super().get_fallback_font(char, style)
        return self._last


@lru_cache(maxsize=4096)
def _script_of(char: str) -> UnicodeScript:
    """The script of a character; a mark or a joiner has that of what it follows, so no word is cut there."""
    script = get_unicode_script(char)
    return UnicodeScript.COMMON if script is UnicodeScript.INHERITED else script


vars(engine)["get_unicode_script"] = _script_of


def rendered(told: dict[str, Any]) -> bytes:
    """The PDF of a paper, as `Paper.as_json` tells it."""
    with tempfile.TemporaryDirectory(prefix="statement-fonts-") as directory:
        return _rendered(told, fonts_for(_texts(told), Path(directory)))


def _texts(told: Any) -> Iterator[str]:
    """Every text of a paper, wherever it stands."""
    if isinstance(told, str):
        yield told
    elif isinstance(told, (list, tuple)):
        for each in told:
            yield from _texts(each)
    elif isinstance(told, dict):
        yield from _texts(list(told.values()))
    # Page numbers are filled in later.
    yield "0123456789"


def _rendered(told: dict[str, Any], fonts: Fonts) -> bytes:
    pdf = Writer(orientation="landscape", format="A4")
    pdf.set_auto_page_break(False)
    # A user may write `{nb}`.
    pdf.str_alias_nb_pages = ""
    pdf.set_margin(_MARGIN)
    pdf.set_creation_date(datetime.fromtimestamp(told["written_at"], UTC))
    pdf.set_title(told["title"])
    pdf.set_lang(told["locale"])
    pdf.take(fonts)
    pages = pages_of(lines_of(told), pdf.h - _MARGIN - _BOTTOM)
    for number, page in enumerate(pages, 1):
        pdf.add_page()
        for line in page:
            _draw(pdf, line, fonts)
        pdf.set_y(-_BOTTOM + 3)
        pdf.set_text_color(_GREY)
        pdf.set_font_size(8)
        pdf.cell(0, 5, fonts.shown(told["page"].format(page=number, pages=len(pages))), align="C")
        pdf.set_text_color(0)
    return bytes(pdf.output())


def _draw(pdf: FPDF, line: Line, fonts: Fonts) -> None:
    pdf.set_font_size(line.size)
    pdf.set_text_color(_GREY if line.is_head else 0)
    last = len(line.cells) - 1
    for number, (text, width) in enumerate(zip(line.cells, line.widths, strict=True)):
        align = "R" if line.is_number and number == last else "L"
        said = _fitting(pdf, fonts.shown(text), width - 2.5)
        pdf.cell(width, line.height, said, border="B" if line.is_head else 0, align=align)
    pdf.set_text_color(0)
    pdf.ln(line.height)


def _fitting(pdf: FPDF, text: str, width: float) -> str:
    """As much of a text as a cell takes, with an ellipsis, which `sans` has, if that is not all."""
    if not text or pdf.get_string_width(text) <= width:
        return text
    few, many = 0, len(text)
    while many - few > 1:
        middle = (few + many) // 2
        if pdf.get_string_width(text[:middle] + "…") <= width:
            few = middle
        else:
            many = middle
    return text[:few].rstrip() + "…"


def main() -> None:
    """Read a paper, write its PDF."""
    # What they warn of quotes texts of users.
    logging.disable(logging.CRITICAL)
    sys.stdout.buffer.write(rendered(json.load(sys.stdin.buffer)))


if __name__ == "__main__":
    main()
