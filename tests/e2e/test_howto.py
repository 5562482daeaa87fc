"""The pages of docs/howto do what they say: the client of the page runs, the commands of the page exist."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ops.cli import app
from tests.stack import World

HOWTO = Path(__file__).parents[2] / "docs/howto"
pytestmark = pytest.mark.timeout(120)


def blocks(page: str, language: str) -> list[str]:
    text = (HOWTO / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


async def test_the_client_of_the_page_creates_an_order_with_nothing_but_the_stubs(world: World) -> None:
    (program,) = blocks("call-from-a-service.md", "python")
    assert "chassis" not in program, "callers install the stubs alone"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program,
        env={**os.environ, "ORDERMESH_STATE_DIR": str(world.state_dir)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), timeout=90)
    assert process.returncode == 0, err.decode()
    order_id, status = out.decode().split()[-2:]
    assert status == "SUCCESS"
    assert (await world.get(order_id)).user_id == "alice"


def commands(page: str) -> list[list[str]]:
    """Every `ordermesh` command of a page, as words."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split() for line in lines if line.strip().startswith("ordermesh ")]


@pytest.mark.parametrize("page", sorted(path.name for path in HOWTO.glob("*.md")))
def test_every_command_of_a_page_exists_with_its_options(page: str) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        ahead = words[1:]
        while hasattr(command, "commands") and ahead:
            command = command.get_command(None, ahead.pop(0))
            assert command is not None, " ".join(words)
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in ahead if word.startswith("--")}
        assert used <= known, f"{' '.join(words)}: no {sorted(used - known)}"
