"""Run one projector: `python -m history_svc.projector`, settings from the environment."""

from __future__ import annotations

import uvloop

from chassis import settings
from history_svc.projector.app import serve
from history_svc.projector.settings import ProjectorSettings

if __name__ == "__main__":
    uvloop.run(serve(settings.load(ProjectorSettings)))
