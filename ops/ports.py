"""The ports of one local stack: chosen once, kept in `<state>/ports.json`, the same after every restart.

Owns ports.json; one process at a time writes it. Ports are taken below the range that the system hands to
outgoing connections, so that a service that is down for a second finds its port again. Fails with PortBusy
when a port that somebody asked for by number is taken.
"""

import json
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ops.errors import OpsError, PortBusy
from ops.files import write_public

HOST: Final = "127.0.0.1"
DEFAULT_PORT_BASE: Final = 7400

_FIRST_PORT: Final = 20_000
_LAST_PORT: Final = 32_000  # Linux hands out 32768 and above to outgoing connections.
_TRIES: Final = 200
_MTLS_OFFSET: Final = 43
_REST_OFFSET: Final = 1000


@dataclass(frozen=True, slots=True)
class EdgePorts:
    """Where people reach the stack."""

    plain: int
    mtls: int
    rest: int


class PortBook:
    """Names and their ports, as the state directory remembers them."""

    def __init__(self, path: Path, ports: dict[str, int]) -> None:
        self._path = path
        self._ports = ports

    @classmethod
    def open(cls, state_dir: Path) -> Self:
        """Read `<state>/ports.json`, or begin an empty book."""
        path = state_dir / "ports.json"
        try:
            ports = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(path, {})
        except json.JSONDecodeError as error:
            raise OpsError(f"{path} is damaged; delete it, and new ports are chosen.") from error
        return cls(path, {str(name): int(port) for name, port in ports.items()})

    def port_of(self, name: str) -> int:
        """Return the port of this name; the first time, a free one, which is written down."""
        if name not in self._ports:
            self._ports[name] = free_port(besides=self._ports.values())
            write_public(self._path, json.dumps(self._ports, indent=2, sort_keys=True) + "\n")
        return self._ports[name]

    def renew_busy(self) -> list[str]:
        """Forget every port that is taken; return their names. Only for a stack of which nothing runs."""
        busy = [name for name, port in self._ports.items() if not is_free(port)]
        for name in busy:
            del self._ports[name]
        return busy

    def edge(self, port_base: int) -> EdgePorts:
        """Return the ports for people: fixed distances from port_base, or kept free ones when it is 0.

        Raises PortBusy, which names the port and the flag, when one of the fixed ports is taken.
        """
        if port_base == 0:
            return EdgePorts(*(self.port_of(f"edge.{name}") for name in ("plain", "mtls", "rest")))
        if not 1024 <= port_base <= 65535 - _REST_OFFSET:
            raise OpsError(
                f"--port-base {port_base} is not 0 and not between 1024 and {65535 - _REST_OFFSET}."
            )
        ports = EdgePorts(port_base, port_base + _MTLS_OFFSET, port_base + _REST_OFFSET)
        for port, use in ((ports.plain, "gRPC"), (ports.mtls, "gRPC with mTLS"), (ports.rest, "REST")):
            if not is_free(port):
                raise PortBusy(
                    f"Port {port} ({use}) is busy; stop what listens there, or choose others with "
                    "--port-base N (0 = any free ports)."
                )
        return ports


def free_port(*, besides: Collection[int] = ()) -> int:
    """Return a port of 127.0.0.1 on which nothing listens now and which is none of `besides`."""
    for _ in range(_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in besides and is_free(port):
            return port
    raise OpsError(f"No free port between {_FIRST_PORT} and {_LAST_PORT} after {_TRIES} tries.")


def is_free(port: int) -> bool:
    """Tell whether we could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Closing connections do not count.
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
