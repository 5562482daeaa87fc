"""Run one simulated upstream: `python -m ops.upstream`, settings from the environment."""

import asyncio

from chassis import settings
from ops.upstream import app
from ops.upstream.settings import UpstreamSettings

if __name__ == "__main__":
    asyncio.run(app.serve(settings.load(UpstreamSettings)))
