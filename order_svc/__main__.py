"""Run order_svc: `python -m order_svc`, settings from the environment."""

import asyncio

from chassis import settings
from order_svc import app
from order_svc.settings import OrderSettings

if __name__ == "__main__":
    asyncio.run(app.serve(settings.load(OrderSettings)))
