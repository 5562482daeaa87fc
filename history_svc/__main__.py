"""Run one history_svc process."""

from __future__ import annotations

import uvloop

from chassis import settings
from history_svc.app import serve
from history_svc.settings import HistorySettings

if __name__ == "__main__":
    uvloop.run(serve(settings.load(HistorySettings)))
