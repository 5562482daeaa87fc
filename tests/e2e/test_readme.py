"""Every command of the README, run in order as a newcomer would, on a stack of its own with free ports."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
READ_ENDPOINTS = """
ordermesh_address() {
  python -c "import json; e = json.load(open('$ORDERMESH_STATE_DIR/endpoints.json')); print($1)"
}
"""


def script() -> str:
    """All blocks as one session; the documented ports become those that the stack took."""
    first, *rest = BLOCKS
    body = "\n".join(rest)
    for address, where in (
        ("http://127.0.0.1:8400", "e['gateway']"),
        ("http://127.0.0.1:7400", "'http://' + e['grpc']['plain']"),
    ):
        body = body.replace(address, f'$(ordermesh_address "{where}")')
    # Other stacks run on this machine too: kill only this one's processes.
    body = body.replace("pkill -9 -f -- '-m order_svc' || true", "kill -9 $ORDER_SVC_PIDS")
    pids = "' '.join(str(s['pid']) for s in e['services'] if s['name'] == 'order_svc')"
    lines = ["set -euo pipefail", ". .venv/bin/activate", READ_ENDPOINTS, first]
    return "\n".join([*lines, f'ORDER_SVC_PIDS=$(ordermesh_address "{pids}")', "set -x", body])


async def run(command: str, state_dir: Path, timeout_s: float) -> str:
    environment = {**os.environ, "ORDERMESH_STATE_DIR": str(state_dir)}
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, cwd=ROOT, env=environment, start_new_session=True,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), timeout=timeout_s)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = out.decode()
    assert process.returncode == 0, text[-6000:]
    return text


@pytest.mark.timeout(420)
async def test_every_command_of_the_readme_does_what_the_readme_says(server_dir: Path) -> None:
    state_dir = server_dir / "readme"
    first = BLOCKS[0]
    assert first.splitlines()[0].startswith("make demo")
    session = script().replace(first, "make up ARGS='--port-base 0'\n")
    try:
        said = await run(session, state_dir, 360)
    finally:
        stop(state_dir)
    for expected in (
        "HTTP/1.1 201",
        '"status":"SUCCESS"',
        "dempotent-replayed: true",
        '"readInfo":{"servedBy":"',
        "hot window",
        '"reason":"INVALID_FIELD"',
        "ordermesh.order.v1.OrderService",
        '"reason": "VIP"',
        "event: order",
        "PARKED",
        "PROBES_EXHAUSTED",
        "REDRIVEN",
        "SETTLED",
        "0 violations",
    ):
        assert expected in said.replace('"status": "', '"status":"'), (expected, said[-6000:])


@pytest.mark.timeout(620)
async def test_the_demo_ends_well(server_dir: Path) -> None:
    state_dir = server_dir / "demo"
    said = await run(f"make demo ARGS='--state-dir {state_dir}'", state_dir, 600)
    for expected in (
        "201 Created",
        "executed exactly once",
        "PROBES_EXHAUSTED",
        "REDRIVEN",
        "200,000 orders over 32 months",
        "18 of 18 months read back, proven and given up",
        "Your order statement is ready",
        "Every order is there",
        "The story is over",
    ):
        assert expected in said


def stop(state_dir: Path) -> None:
    """Nothing of the session may outlive the test, whatever failed."""
    path = state_dir / "endpoints.json"
    if not path.exists() or (found := json.loads(path.read_text()))["state"] == "stopped":
        return
    try:
        os.kill(found["stack_pid"], signal.SIGTERM)
    except ProcessLookupError:
        return
