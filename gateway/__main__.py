"""Run one gateway process."""

from __future__ import annotations

import uvloop

from chassis import settings
from gateway.app import serve
from gateway.settings import GatewaySettings

if __name__ == "__main__":
    uvloop.run(serve(settings.load(GatewaySettings)))
