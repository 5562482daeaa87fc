"""The fonts of a PDF: every script that people write in is drawn, and nothing that they write breaks it."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path

import pypdf
import pytest
from fontTools.ttLib import TTFont
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from archive_svc.statement.fonts import REPLACEMENT, fonts_for
from archive_svc.statement.pdf_file import rendered
from tests.unit.test_statement_paper import pages, said_of
from tests.unit.test_statement_rows import row

NAMES = {
    "Latin": "Zoë Ångström-Šafařík",
    "Greek": "Ελένη Παπαδοπούλου",
    "Cyrillic": "Юлия Щукина",
    "Devanagari": "सुश्री शर्मिष्ठा क्षीरसागर",
    "Bengali": "শ্রীমতী অনিন্দিতা চট্টোপাধ্যায়",
    "Gurmukhi": "ਸਰਦਾਰ ਗੁਰਪ੍ਰੀਤ ਸਿੰਘ",
    "Gujarati": "શ્રી જિજ્ઞેશ પટેલ",
    "Odia": "ଶ୍ରୀ ଜଗନ୍ନାଥ ମହାପାତ୍ର",
    "Tamil": "ஸ்ரீ வெங்கடேஷ்",
    "Telugu": "శ్రీ వెంకటేశ్వర్లు",
    "Kannada": "ಶ್ರೀಮತಿ ಲಕ್ಷ್ಮೀ ಕೃಷ್ಣಮೂರ್ತಿ",
    "Malayalam": "ശ്രീ കൃഷ്ണൻകുട്ടി",
    "Sinhala": "ශ්‍රී ලංකා",
    "Arabic": "السيدة فاطمة الزهراء",
    "Urdu": "جناب محمد اقبال ٹھاکر",
    "Hebrew": "גברת שׁוֹשַׁנָּה לוי",
    "Thai": "คุณสมชาย ใจดี",
    "Lao": "ທ້າວ ສົມຈິດ",
    "Khmer": "លោក សុខា",
    "Burmese": "ဦး အောင်ဆန်း",
    "Georgian": "ქალბატონი ნინო",
    "Armenian": "Տիկին Անահիտ",
    "Amharic": "ወይዘሮ ገነት",
    "Chinese": "王小明 陳大文",
    "Japanese": "山田はなこ タロウ",
    "Korean": "김하늘 씨",
    "Money": "₹ € £ ¥ ₩ ₪ ฿ ৳",
    "Emoji": "🎂 🚀 ☂",
}
DEAD = "𓂀𒀀𐎀"
"""Hieroglyphs and cuneiform: nobody here has a font for them."""


@pytest.mark.parametrize("script", NAMES)
def test_a_name_in_every_script_is_drawn_by_shapes_of_that_script(script: str, tmp_path: Path) -> None:
    name = NAMES[script]
    fonts = fonts_for([name], tmp_path)
    assert fonts.shown(name) == unicodedata.normalize("NFC", name), "nothing is missing"
    covered = set()
    for face in fonts.faces:
        with TTFont(face.path) as font:
            shapes = font.getGlyphSet()
            covered |= {chr(code) for code, glyph in font.getBestCmap().items() if glyph in shapes}
    assert set(fonts.shown(name)) - covered <= {"\u200d"}
    (page,) = pages(rendered(said_of([row(1, description=name)]).as_json()))
    assert REPLACEMENT not in page
    assert row(1).order_id in page


def test_only_the_fonts_that_are_needed_are_opened(tmp_path: Path) -> None:
    assert [face.name for face in fonts_for(["a book"], tmp_path).faces] == ["sans"]
    assert [face.name for face in fonts_for([NAMES["Kannada"], NAMES["Hebrew"]], tmp_path).faces] == [
        "sans",
        "kannada",
        "hebrew",
    ]
    assert not list(tmp_path.iterdir())
    assert [face.name for face in fonts_for([NAMES["Chinese"]], tmp_path).faces] == ["sans", "cjk"]
    small = tmp_path / "cjk.otf"
    assert small.stat().st_size < 16_384, "of 32 MB only what is drawn"


def test_what_no_font_has_is_seen_to_be_missing_and_what_is_never_seen_is_left_out(tmp_path: Path) -> None:
    text = f"a {DEAD} b \u2764\ufe0f c\U000e0100"
    fonts = fonts_for([text], tmp_path)
    assert fonts.shown(text) == f"a {REPLACEMENT * 3} b \u2764 c"
    (page,) = pages(rendered(said_of([row(1, description=text)]).as_json()))
    assert f"a {REPLACEMENT * 3} b" in page
    assert row(1).order_id in page


@pytest.mark.parametrize("letter", ["\u0d28", "\u0d32", "\u0d30"])
def test_a_joiner_is_drawn_with_the_letters_that_it_joins(letter: str) -> None:
    """A chillu of Malayalam, written with a joiner, is one shape; without it, a letter and a mark, or so."""
    assert shapes_of(f"{letter}\u0d4d\u200d x") == 1
    assert shapes_of(f"{letter}\u0d4d x") == 2


def shapes_of(text: str) -> int:
    """How many shapes of another font than the first a PDF draws for the text of its order."""
    pdf = pypdf.PdfReader(io.BytesIO(rendered(said_of([row(1, description=text)]).as_json())))
    contents = pdf.pages[0].get_contents()
    assert contents is not None
    drawn = re.findall(rb"/F2 [0-9.]+ Tf (.*?) /F1", contents.get_data(), re.DOTALL)
    return sum(len(shapes) // 2 for part in drawn for shapes in re.findall(rb"\((.*?)\) Tj", part, re.DOTALL))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
@example(["\u0301", "\u0903", "\u200d", "\u200c\u200d", "\u0e33", "\U0001f1ee\U0001f1f3", "\u1161", "\u3099"])
@example(["\u0627\u064b" * 60, "\u05d0\u0301(\u0661)", "a\u0628b\u05d0c", "\ufdfd" * 20, "\ufffe\uffff"])
@example(["".join(NAMES.values())])
@example(["\U0001f469\U0001f3fd\u200d\U0001f680" * 30, "#\ufe0f\u20e3", "\U000e0067\U000e007f"])
def test_no_text_breaks_a_pdf(texts: list[str]) -> None:
    rows = [row(n, description=text, upstream_ref=text) for n, text in enumerate(texts)]
    whole = "".join(pages(rendered(said_of(rows).as_json())))
    assert all(each.order_id in whole for each in rows)
    assert whole.count("EUR 12.50") == len(rows)
