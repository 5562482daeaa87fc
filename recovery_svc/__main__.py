"""Run recovery_svc: `python -m recovery_svc`, settings from the environment."""

import asyncio

from chassis import settings
from recovery_svc import app
from recovery_svc.settings import RecoverySettings

if __name__ == "__main__":
    asyncio.run(app.serve(settings.load(RecoverySettings)))
