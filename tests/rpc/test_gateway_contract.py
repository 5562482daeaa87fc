"""The OpenAPI document holds: whatever a fuzzer makes of it, each answer is a documented one, none a 500."""

import asyncio
import sys
from pathlib import Path

from tests import gateways

EXAMPLES = 30
WITHIN_S = 100.0
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
STREAMS_APART = r"/orders(/\{order_id\}(/journal)?)?$"
"""A stream of events has no end to wait for; tests/rpc/test_gateway_streams.py reads those."""


async def test_every_answer_to_a_fuzzer_is_documented(tmp_path):
    async with gateways.opened(tmp_path, profile="local") as rest:
        await rest.create()
        fuzzer = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "run"),
            f"http://127.0.0.1:{rest.port}/openapi.json",
            *("--header", f"Authorization: Bearer {rest.token()}", "--checks", CHECKS),
            *("--include-path-regex", STREAMS_APART, "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", str(EXAMPLES), "--seed", "7", "--request-timeout", "10", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(WITHIN_S):
                said, _ = await fuzzer.communicate()
        finally:
            if fuzzer.returncode is None:
                fuzzer.kill()
        assert fuzzer.returncode == 0, said.decode()
        assert rest.mesh.calls, "some of what it sent was sound and reached the mesh"
