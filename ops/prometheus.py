"""One real Prometheus of the local stack and the tests: it scrapes what it is told to and follows the rules.

It has the jobs of production, from deploy/prometheus/scrape.yml, and one for what runs on a laptop alone.
The programs come from ops.gobuild. Targets and rules may be replaced while it runs: targets are read again by
themselves, rules by `reload`. How it lives and dies says ops.owned.

    server = PrometheusServer(data_directory(state_dir, "prometheus", kind="servers"), free_port())
    server.watch([Target("order_svc", "order_svc.s1", "127.0.0.1:7101", shard="s1")])
    await server.start()
    await server.query("up")          # [{"metric": {...}, "value": [...]}]
    await server.stop()
"""

import asyncio
import json
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from ops import gobuild, places, processes
from ops.owned import HOST, OwnedServer, ServerError

SCRAPE_S: Final = 5.0
KEPT: Final = "24h"
"""How far back a local stack can be looked at."""
KEPT_MB: Final = 512

_ANSWER_TIMEOUT_S: Final = 10.0
_OTHERS: Final = "others"
"""The job of what production does not have, such as simulated upstreams; each says itself what it is."""
_JOB: Final = re.compile(r"^  - job_name: (\w+)$", re.MULTILINE)


def _scrape_file() -> str:
    return (places.deploy_dir() / "prometheus/scrape.yml").read_text(encoding="utf-8")


def jobs() -> tuple[str, ...]:
    """The jobs of production."""
    return tuple(_JOB.findall(_scrape_file()))


@dataclass(frozen=True, slots=True)
class Target:
    """One process to scrape. service: becomes the label `job`; name: `instance`; address: host:port."""

    service: str
    name: str
    address: str
    shard: str | None = None


class PrometheusServer(OwnedServer):
    """A Prometheus with its own data.

    rules:    files of recording and alerting rules, read at start and by `reload`.
    scrape_s: how often targets are asked and rules computed, in seconds.
    """

    title = "Prometheus"

    def __init__(
        self, data_dir: Path, port: int, *, rules: Sequence[Path] = (), scrape_s: float = SCRAPE_S
    ) -> None:
        super().__init__(data_dir, port)
        self.rules = tuple(rules)
        self.scrape_s = scrape_s
        self._targets: Sequence[Target] = ()

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{HOST}:{self.port}"

    @property
    def mark(self) -> str:
        """The option that names the data; the server has one process."""
        return f"--storage.tsdb.path={self.data_dir / 'data'}"

    def watch(self, targets: Sequence[Target]) -> None:
        """Say what is to be scraped; also while the server runs."""
        self._targets = tuple(targets)
        if self.config_dir.exists():
            self._write_targets()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression of PromQL gives now, as the API of Prometheus shows them.

        Raises: ServerError when it is none, or nobody answers.
        """
        found = await self._get("/api/v1/query", query=expression)
        return list(found["result"])

    async def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing now.

        Raises: ServerError.
        """
        return list((await self._get("/api/v1/alerts"))["alerts"])

    def reload(self) -> None:
        """Read configuration and rules anew; what is wrong with them is in the log, and the old ones stay."""
        self._configure(self.config_dir)
        if self.pid is not None:
            processes.send(self.pid, signal.SIGHUP)

    async def _get(self, path: str, **params: str) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=_ANSWER_TIMEOUT_S) as client:
                answer = (await client.get(path, params=params)).json()
        except (httpx.HTTPError, ValueError) as failed:
            raise ServerError(f"Prometheus on {self.url} does not answer: {failed}.") from failed
        if answer.get("status") != "success":
            raise ServerError(f"Prometheus refused {params}: {answer.get('error')}.")
        return dict(answer["data"])

    async def _home(self) -> Path:
        stop = threading.Event()
        try:
            return await asyncio.to_thread(gobuild.programs, stop=stop)
        finally:
            stop.set()

    def _configure(self, home: Path) -> None:
        rules = []
        for number, path in enumerate(self.rules):
            # Copied, since its user may not enter where they are.
            rules.append(str(self._write_config(f"rules-{number}.yml", path.read_text(encoding="utf-8"))))
        self._write_config("scrape.yml", _scrape_file())
        self._write_targets()
        every = f"{round(self.scrape_s * 1000)}ms"
        timeout = f"{round(min(self.scrape_s, _ANSWER_TIMEOUT_S) * 1000)}ms"
        # JSON is YAML.
        configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": timeout, "evaluation_interval": every},
            "rule_files": rules,
            "scrape_config_files": ["scrape.yml"],
            "scrape_configs": [
                {"job_name": _OTHERS, "file_sd_configs": [{"files": [f"targets/{_OTHERS}.yml"]}]}
            ],
        }
        self._write_config("prometheus.yml", json.dumps(configuration, indent=2))

    def _write_targets(self) -> None:
        of_jobs: dict[str, list[dict[str, Any]]] = {job: [] for job in (*jobs(), _OTHERS)}
        for target in self._targets:
            labels = {"instance": target.name} | ({"shard": target.shard} if target.shard else {})
            if target.service in of_jobs:
                of_jobs[target.service].append({"targets": [target.address], "labels": labels})
            else:
                labels["job"] = target.service
                of_jobs[_OTHERS].append({"targets": [target.address], "labels": labels})
        for job, found in of_jobs.items():
            self._write_config(f"targets/{job}.yml", json.dumps(found, indent=2))

    def _command(self, home: Path) -> list[str | Path]:
        return [
            *(home / "prometheus", self.mark, f"--config.file={self.config_dir / 'prometheus.yml'}"),
            *(f"--web.listen-address={HOST}:{self.port}", "--enable-feature=exemplar-storage"),
            *(f"--storage.tsdb.retention.time={KEPT}", f"--storage.tsdb.retention.size={KEPT_MB}MB"),
        ]

    def _environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.data_dir), "TMPDIR": str(self.data_dir / "tmp"), "GOMEMLIMIT": "256MiB"}

    async def _answers(self) -> bool:
        async with httpx.AsyncClient(timeout=_ANSWER_TIMEOUT_S) as client:
            try:
                answer = await client.get(f"{self.url}/-/ready")
            except httpx.TransportError:
                return False
        return answer.status_code == httpx.codes.OK
