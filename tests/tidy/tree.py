"""The repository as its tidy tests see it: the files that git keeps, and what they say."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (
    "chassis",
    "gateway",
    "shard_proxy",
    "order_svc",
    "history_svc",
    "recovery_svc",
    "archive_svc",
    "ops",
)
OURS = (*SHIPPED, "db", "scripts", "tests", "benchmarks")
GENERATED = ("ordermesh/", "requirements/", "protos/released.json", "protos/grpc/", "LICENSE")


@cache
def files() -> tuple[Path, ...]:
    """Every file of the repository that people write, tracked or about to be, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(name for name in listed.stdout.split("\0") if name and not name.startswith(GENERATED))
    return tuple(Path(name) for name in names if (ROOT / name).is_file())


def written(*suffixes: str, under: tuple[str, ...] = ()) -> list[Path]:
    """Files with one of these suffixes, in one of these folders."""
    return [path for path in files() if path.suffix in suffixes and (not under or path.parts[0] in under)]


@cache
def text(path: Path) -> str:
    """What a file says; empty when it is no text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@cache
def tree(path: Path) -> ast.Module:
    """A Python file, parsed."""
    return ast.parse(text(path), filename=str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a Python file, inner ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def module_name(path: Path) -> str:
    """How a Python file is imported."""
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
