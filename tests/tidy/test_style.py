"""The house style, held by tests: sizes, names, and things that are never written here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from scripts import docs
from tests.tidy.tree import OURS, ROOT, SHIPPED, files, functions, module_name, text, tree, written

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
TEST_FILE_LINES_MAX = 900
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def test_no_function_is_a_room_with_too_many_doors() -> None:
    long = [
        f"{path}:{function.lineno} {function.name} has {lines} lines"
        for path in written(".py")
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == [], f"split them: at most {FUNCTION_LINES_MAX} lines"


def test_no_file_is_too_long_to_read_at_once() -> None:
    long = [
        f"{path} has {lines} lines"
        for path in written(".py", ".sql", ".proto", ".md")
        if path.name not in docs.PAGES
        and (lines := text(path).count("\n"))
        > (TEST_FILE_LINES_MAX if path.parts[0] == "tests" else FILE_LINES_MAX)
    ]
    assert long == [], f"split by noun: at most {FILE_LINES_MAX} lines, tests {TEST_FILE_LINES_MAX}"


def test_no_name_says_nothing() -> None:
    """What is in `utils` belongs to somebody; name the file after that."""
    empty = [
        str(path)
        for path in files()
        for part in (*path.parent.parts, path.stem)
        if EMPTY_NAMES & set(re.split(r"[_.-]", part.lower()))
    ]
    empty += [
        f"{path}:{node.lineno} {node.name}"
        for path in written(".py", under=SHIPPED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and EMPTY_NAMES & set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", node.name).lower()))
    ]
    assert empty == []


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """Where a pattern is written, as file:line."""
    seeking = re.compile(pattern)
    return [
        f"{path}:{number} {line.strip()[:80]}"
        for path in paths
        for number, line in enumerate(text(path).splitlines(), 1)
        if seeking.search(line)
    ]


def test_nothing_is_left_to_do() -> None:
    """An open question is an issue, not a comment."""
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"))
    assert lines_with(rf"\b({marks})\b", list(files())) == []


def test_no_test_is_switched_off() -> None:
    switched_off = r"pytest\.(mark\.)?(skip|xfail)|unittest\.skip|importorskip"
    assert (
        lines_with(switched_off, [p for p in written(".py", under=("tests",)) if p.name != "test_style.py"])
        == []
    )


def test_no_machine_and_no_package_index_is_named() -> None:
    """A clone works anywhere: no home directory, no scratch directory, no index of somebody's network."""
    homes = r"(?<![\w.~/-])/(root|home|Users|work|farm)/[\w.-]"
    scratch = r"(?<![\w.~/-])/tmp/[\w.-]"
    indexes = (
        r"(--|_)(extra-)?index-url[ =]|trusted-host|(registry|nexus|artifactory|pypi)\.[\w-]+\.\w|GOPROXY="
    )
    indexes += r"|https?://\S*(pythonhosted|npmjs|goproxy|crates\.io|maven\.)"
    everywhere = [path for path in files() if path.name not in ("test_style.py", "Makefile")]
    assert lines_with(f"{homes}|{scratch}|{indexes}", everywhere) == []


def test_the_makefile_names_no_package_index() -> None:
    """Its own `--no-emit-index-url` keeps one out of the locks, which are read here too."""
    locks = [path.relative_to(ROOT) for path in sorted((ROOT / "requirements").glob("*"))]
    lines = lines_with(r"https?://|index-url", [*locks, Path("Makefile")])
    assert [line for line in lines if "--no-emit-index-url" not in line] == []


def sleeps(path: Path) -> Iterator[str]:
    """Calls of sleep that wait for time to pass."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name not in ("asyncio.sleep", "time.sleep", "sleep"):
            continue
        if not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0):
            yield f"{path}:{node.lineno} {ast.unparse(node)}"


def test_tests_wait_for_signals_and_never_sleep() -> None:
    """chassis.testing.eventually polls with a deadline; an Event waits for what happens."""
    assert [sleep for path in written(".py", under=("tests",)) for sleep in sleeps(path)] == []


def names_used(node: ast.AST) -> set[str]:
    """Every name and attribute inside of a node."""
    used = (each for each in ast.walk(node) if isinstance(each, ast.Name | ast.Attribute))
    return {each.id if isinstance(each, ast.Name) else each.attr for each in used}


def test_every_test_can_fail() -> None:
    """A test asserts, or calls something of the tests that does, however deep."""
    paths = [
        path
        for path in written(".py")
        if path.parts[0] == "tests" or path.parts[:2] == ("chassis", "testing")
    ]
    nodes = [(path, function) for path in paths for function in functions(path)]
    claims = {"raises", "run_state_machine_as_test"} | {
        function.name
        for _, function in nodes
        if any(isinstance(each, ast.Assert) for each in ast.walk(function))
    }
    while more := {function.name for _, function in nodes if names_used(function) & claims} - claims:
        claims |= more
    idle = [
        f"{path}:{function.lineno} {function.name}"
        for path, function in nodes
        if function.name.startswith("test_") and function.name not in claims
    ]
    assert idle == []


def test_the_repository_holds_text_only() -> None:
    assert [str(path) for path in files() if not text(path) and (ROOT / path).stat().st_size] == []


def test_tests_mock_nothing_of_ours() -> None:
    assert (
        lines_with(
            r"unittest\.mock|\bMagicMock\b|\bAsyncMock\b|mocker\.",
            [path for path in written(".py", under=("tests",)) if path.name != "test_style.py"],
        )
        == []
    )


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path) for path in written(".py", under=OURS) if text(path) and not ast.get_docstring(tree(path))
    ]
    assert silent == []


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, also the ones that may be names of something in them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            yield node.value.partition(":")[0]  # "package.module:name", imported when it is needed.


def test_no_shipped_file_is_dead() -> None:
    """A module that nobody imports and nobody starts is deleted."""
    used = {name for path in written(".py") for name in imports(path)}
    started = re.findall(r"python[3\"', ]+-m[\"', ]+([\w.]+)", " ".join(text(path) for path in files()))
    scripts = re.findall(r'= "([\w.]+):\w+"', text(Path("pyproject.toml")))
    alive = used | set(started) | set(scripts)
    dead = [
        str(path)
        for path in written(".py", under=SHIPPED)
        if path.name not in ("__init__.py", "__main__.py") and module_name(path) not in alive
    ]
    assert dead == []


def test_exceptions_are_not_swallowed() -> None:
    """`except ...: pass` hides what went wrong; contextlib.suppress at least names it."""
    swallowed = [
        f"{path}:{node.lineno}"
        for path in written(".py", under=SHIPPED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    assert swallowed == []


def test_background_tasks_have_names() -> None:
    """Their death is somebody's problem within a second; a name says whose. A TaskGroup waits for its own."""
    nameless = [
        f"{path}:{node.lineno} {ast.unparse(node)[:80]}"
        for path in written(".py", under=SHIPPED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "create_task"
        and not ast.unparse(node.func.value).endswith("group")
        and "name" not in {keyword.arg for keyword in node.keywords}
    ]
    assert nameless == []
