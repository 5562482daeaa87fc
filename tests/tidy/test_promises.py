"""docs/PROMISES.md names tests that exist, generated pages are fresh, every fault point is killed at."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.faults.points import (
    AMEND_POINTS,
    ARCHIVE_POINTS,
    ERASE_POINTS,
    KEEPER_POINTS,
    MAIL_POINTS,
    MOMENTS,
    MOVES,
    OBJECT_POINTS,
    POINTS,
    READ_SIDE_POINTS,
    RESTORE_POINTS,
    STATEMENT_POINTS,
    SWEEP_POINTS,
)

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs/PROMISES.md").read_text(encoding="utf-8")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_every_promise_names_tests_and_each_of_them_exists() -> None:
    there = set().union(*(names_in(path) for path in (ROOT / "tests").rglob("test_*.py")))
    sections = re.split(r"^## (P\d) ", PROMISES, flags=re.MULTILINE)[1:]
    promises = dict(zip(sections[::2], sections[1::2], strict=True))
    assert sorted(promises) == [f"P{number}" for number in range(1, 9)]
    for promise, text in promises.items():
        named = set(re.findall(r"`(test_\w+)`", text))
        assert named, f"{promise} names no test"
        assert named <= there, f"{promise} names tests that do not exist: {sorted(named - there)}"


def test_the_generated_pages_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, "scripts/docs.py", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


DECLARED = (
    "from scripts.docs import modules; modules(); from chassis import faults; print(*faults.declared())"
)


def test_a_test_kills_at_every_declared_fault_point() -> None:
    """Asked in a process of its own, since other tests declare points too."""
    asked = subprocess.run(
        [sys.executable, "-c", DECLARED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    killed_at = {point.name for point in (*POINTS, *MOVES)} | {
        *READ_SIDE_POINTS,
        *OBJECT_POINTS,
        *KEEPER_POINTS,
        *ARCHIVE_POINTS,
        *RESTORE_POINTS,
        *STATEMENT_POINTS,
        *ERASE_POINTS,
        *AMEND_POINTS,
        *SWEEP_POINTS,
        *MAIL_POINTS,
    }
    assert killed_at == set(asked.stdout.split())


def test_a_process_dies_at_every_moment_of_the_archives_way() -> None:
    points = {*ARCHIVE_POINTS, *STATEMENT_POINTS, *MAIL_POINTS}
    tests = (ROOT / "tests/faults/test_archive_frozen.py").read_text(encoding="utf-8")
    lacking = {
        moment: named
        for moment, named in MOMENTS.items()
        if named not in points and f"async def {named}(" not in tests
    }
    assert lacking == {}
    assert len(MOMENTS) >= 25
