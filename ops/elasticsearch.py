"""One real Elasticsearch node of the local stack, the tests and the benchmarks.

Elastic's own build without its optional modules (no reindex, no scripts, no ingest), which the read side does
not need. Indices are made by those who own them and never by a document that came too early. What it owns,
and how it lives and dies, says ops.owned.

    server = ElasticsearchServer(data_directory(state_dir, "node", kind="elasticsearch"), 9200, 9300)
    await server.start()
    server.url            # http://127.0.0.1:9200
    await server.stop()
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from ops import places
from ops.jvm import JavaServer
from ops.owned import HOST

_ANSWER_TIMEOUT_S: Final = 15.0
_YELLOW_WITHIN_S: Final = 10
_LAUNCHER: Final = "org.elasticsearch.launcher.CliToolLauncher"

_SETTINGS: Final = """\
cluster.name: ordermesh
node.name: local
discovery.type: single-node
network.host: {host}
http.port: {port}
transport.port: {peer_port}
path.data: {data}
path.logs: {logs}
xpack.security.enabled: false
action.auto_create_index: false
# A laptop's disk is fuller than a server's; doctor looks at the space.
cluster.routing.allocation.disk.threshold_enabled: false
"""
# Elastic's own file without the garbage log, and without a module that the packaged Java lacks.
_JVM_OPTIONS: Final = """\
-Xms{heap_mb}m
-Xmx{heap_mb}m
-XX:+UseG1GC
-Djava.io.tmpdir={tmp}
-XX:CompileCommand=dontinline,java/lang/invoke/MethodHandle.setAsTypeCache
-XX:CompileCommand=dontinline,java/lang/invoke/MethodHandle.asTypeUncached
-XX:+ExitOnOutOfMemoryError
-XX:ErrorFile={logs}/hs_err_pid%p.log
{more}
"""
_LOGGING: Final = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}] %p %m (%c{1.})%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class ElasticsearchServer(JavaServer):
    """An Elasticsearch node that is a cluster by itself, without security, on loopback.

    peer_port: of the transport protocol, to which nobody else connects.
    """

    title = "Elasticsearch"
    bundle = "elasticsearch"

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{HOST}:{self.port}"

    def _configure(self, home: Path) -> None:
        more = [self.mark, *self._compiler()]
        where = {name: self.data_dir / name for name in ("data", "logs", "tmp")}
        self._write_config(
            "elasticsearch.yml",
            _SETTINGS.format(host=HOST, port=self.port, peer_port=self.peer_port, **where),
        )
        self._write_config(
            "jvm.options", _JVM_OPTIONS.format(heap_mb=self.heap_mb, more="\n".join(more), **where)
        )
        self._write_config("log4j2.properties", _LOGGING)

    def _command(self, home: Path) -> list[str | Path]:
        """What bin/elasticsearch would run, without the shell and its look at our environment.

        The launcher starts the server as its child, which ends when the launcher does.
        """
        root = _root(home)
        return [
            self._java(),
            *("-Xms4m", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Dcli.name=server", "-Dcli.script=elasticsearch", "-Dcli.libs=lib/tools/server-cli"),
            *(f"-Des.path.home={root}", f"-Des.path.conf={self.config_dir}"),
            *("-Des.distribution.type=zip", "-Des.java.type=ES_JAVA_HOME"),
            self.mark,
            *("-cp", f"{root}/lib/*:{root}/lib/cli-launcher/*", _LAUNCHER),
        ]

    def _workplace(self, home: Path) -> Path:
        return _root(home)  # Where the launcher looks for modules.

    def _environment(self) -> Mapping[str, str]:
        return {
            "ES_JAVA_HOME": str(places.java_home()),
            "ES_PATH_CONF": str(self.config_dir),
            "ES_TMPDIR": str(self.data_dir / "tmp"),
        }

    async def _answers(self) -> bool:
        wanted = {"wait_for_status": "yellow", "timeout": f"{_YELLOW_WITHIN_S}s"}
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=_ANSWER_TIMEOUT_S) as client:
                answer = await client.get("/_cluster/health", params=wanted)
        except httpx.TransportError:
            return False
        # 408: it serves, but an index of it is broken, which is for those who own the index to see.
        return answer.status_code in (httpx.codes.OK, httpx.codes.REQUEST_TIMEOUT)


def _root(home: Path) -> Path:
    """The one directory in the unpacked file."""
    return next(path for path in home.iterdir() if path.is_dir())
