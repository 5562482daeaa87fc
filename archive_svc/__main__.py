"""Run one archive_svc: `python -m archive_svc`, settings from the environment."""

from __future__ import annotations

import uvloop

from archive_svc.app import serve
from archive_svc.settings import ArchiveSettings
from chassis import settings

if __name__ == "__main__":
    uvloop.run(serve(settings.load(ArchiveSettings)))
