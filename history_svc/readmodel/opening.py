"""Which read model the settings name."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from chassis import pg
from chassis.es import open_elastic
from history_svc.readmodel.elastic import ElasticReadModel, Layout
from history_svc.readmodel.table import SESSION, TableReadModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from history_svc.readmodel.port import ReadModel
    from history_svc.settings import ReadSideSettings


@asynccontextmanager
async def opened(settings: ReadSideSettings) -> AsyncIterator[ReadModel]:
    """The read model of the settings; nothing connects before it is needed."""
    if settings.read_model == "elasticsearch":
        layout = Layout(settings.elasticsearch_shards, settings.elasticsearch_replicas)
        async with open_elastic(settings.elastic()) as elastic:
            yield ElasticReadModel(elastic, layout)
        return
    wanted = pg.PgSettings(
        dsn=settings.read_model_dsn.get_secret_value(),
        pool_size=settings.read_model_pool_size,
        queue=3 * settings.read_model_pool_size,
        session=SESSION,
    )
    async with pg.open_database(wanted, name="read-model") as database:
        yield TableReadModel(database)
