"""docs/ORDER_STATES.md is what the table prints."""

from pathlib import Path

from order_svc import states


def test_the_printed_table_is_the_one_the_code_uses() -> None:
    printed = Path("docs/ORDER_STATES.md").read_text(encoding="utf-8")
    assert printed == states.document(), "run `python -m order_svc.states > docs/ORDER_STATES.md`"
