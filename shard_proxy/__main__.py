"""Run one shard_proxy process."""

from __future__ import annotations

import uvloop

from chassis import settings
from shard_proxy.app import serve
from shard_proxy.settings import ProxySettings

if __name__ == "__main__":
    uvloop.run(serve(settings.load(ProxySettings)))
