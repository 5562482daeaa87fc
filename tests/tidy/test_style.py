"""The house style as far as a machine can check it: sizes, names, unfinished marks, what must not be here."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
TEST_FILE_LINES_MAX = 900
NAMES_THAT_SAY_NOTHING = re.compile(r"(^|/)(utils?|common|helpers?|misc|manager)(\.py|/)")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
SKIPPED = re.compile(r"pytest\.(mark\.)?(skip|xfail)|importor" + r"skip|unittest\.skip")
SLEEPS = re.compile(r"\b(asyncio|time)\.sleep\((?!0\))")
REGISTRIES = re.compile(r"https?://\S*(py" + r"pi\.|pythonhosted|maven|npm" + r"js|goproxy|crates\.io)")
MACHINES = re.compile(r"(?<![\w.])/(work|farm|root|home)/\w")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    for name in tracked():
        if not suffixes or name.endswith(suffixes):
            try:
                yield name, (ROOT / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                pytest.fail(f"{name} is not text: no binaries in the repository")


def ours() -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in texts(".py") if not name.startswith("ordermesh/"))


def lines_with(pattern: re.Pattern[str], files: Iterator[tuple[str, str]]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in files
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_functions_and_files_are_of_one_purpose_by_size() -> None:
    long = []
    for name, text in ours():
        limit = TEST_FILE_LINES_MAX if name.startswith("tests/") else FILE_LINES_MAX
        if len(text.splitlines()) > limit:
            long.append(f"{name}: more than {limit} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION_LINES_MAX:
                    long.append(f"{name}:{node.lineno}: {node.name} has {size} lines")
    assert not long


def test_names_say_something() -> None:
    assert not [name for name in tracked() if NAMES_THAT_SAY_NOTHING.search(name)]


def test_nothing_is_left_unfinished_or_skipped() -> None:
    assert not lines_with(UNFINISHED, ours())
    assert not lines_with(SKIPPED, ours())


def test_tests_wait_for_signals_and_do_not_sleep() -> None:
    assert not lines_with(SLEEPS, ((name, text) for name, text in ours() if name.startswith("tests/")))


def test_no_registry_and_no_machine_is_named() -> None:
    assert not lines_with(REGISTRIES, texts())
    assert not lines_with(MACHINES, texts())


def functions_of_tests() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, text in ours():
        if name.startswith(("tests/", "chassis/testing/")):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{name}:{node.lineno}", node


def names_used(node: ast.AST) -> set[str]:
    used = (each for each in ast.walk(node) if isinstance(each, ast.Name | ast.Attribute))
    return {each.id if isinstance(each, ast.Name) else each.attr for each in used}


def test_every_test_can_fail() -> None:
    """A test asserts, or calls something of the tests that does, however deep."""
    functions = list(functions_of_tests())
    claims = {
        node.name
        for _, node in functions
        if any(isinstance(each, ast.Assert) for each in ast.walk(node)) or "raises" in names_used(node)
    }
    claims |= {"raises", "run_state_machine_as_test"}
    while more := {node.name for _, node in functions if names_used(node) & claims} - claims:
        claims |= more
    tests = [(where, node.name) for where, node in functions if node.name.startswith("test_")]
    assert not [f"{where}: {name}" for where, name in tests if name not in claims]


def test_every_statement_has_a_sentence_and_is_used() -> None:
    lonely = []
    for path in (*ROOT.glob("*_svc/queries.sql"), ROOT / "shard_proxy/queries.sql"):
        lonely += unused(path)
    assert lonely == []


def unused(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    code = "".join(each.read_text(encoding="utf-8") for each in path.parent.glob("*.py"))
    found = []
    for name, following in re.findall(r"^-- name: (\w+)\n(.*)$", text, re.MULTILINE):
        if not following.startswith("-- "):
            found.append(f"{path.name}: {name} has no sentence")
        if not re.search(rf"\.{name}\b", code):
            found.append(f"{path.parent.name}: {name} is not used")
    return found


def test_pages_have_one_title_and_their_links_lead_somewhere() -> None:
    wrong = []
    for name, text in texts(".md"):
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        if len(re.findall(r"^# ", prose, re.MULTILINE)) != 1:
            wrong.append(f"{name}: one title, please")
        links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose) if not link.startswith("http")]
        here = (ROOT / name).parent
        wrong += [f"{name}: {link} leads nowhere" for link in links if not (here / link).exists()]
    assert not wrong


def test_the_reasons_of_the_code_are_those_of_the_proto() -> None:
    from chassis.errors import Reason
    from ordermesh.errors.v1.reason_pb2 import Reason as Wire

    assert {f"REASON_{reason}" for reason in Reason} == set(Wire.keys()) - {"REASON_UNSPECIFIED"}
