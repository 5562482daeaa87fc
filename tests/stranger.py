"""A process that says on a port of 127.0.0.1 that it is ready, whatever it is asked; without one it only is.

python -m tests.stranger [PORT [OPTION...]]
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

HOST = "127.0.0.1"


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


def main(port: str) -> None:
    """Serve until killed."""
    if port:
        HTTPServer((HOST, int(port)), Ready).serve_forever()
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("STRANGER_PORT", ""))
