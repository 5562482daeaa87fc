"""Run the shipper: `python -m ops.shipper`, settings from the environment."""

import uvloop

from chassis import settings
from ops.shipper import app
from ops.shipper.settings import ShipperSettings

if __name__ == "__main__":
    uvloop.run(app.serve(settings.load(ShipperSettings)))
