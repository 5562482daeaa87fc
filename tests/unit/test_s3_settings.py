"""Where links to files may lead."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from chassis.s3 import S3Settings


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://files.example",
        "https://files.example:8443",
        "http://localhost",
        "http://localhost:8333",
        "http://127.0.0.1:8333",
        "http://[::1]:8333",
    ],
)
def test_links_lead_where_nobody_reads_them_on_the_way(address: str) -> None:
    assert S3Settings(bucket="statements", public_endpoint=address).public_endpoint == address


@pytest.mark.parametrize(
    "address",
    [
        "http://files.example",
        "http://10.0.0.7:8333",
        "http://localhost.example",
        "http://localhost:8333.example",
        "http://127.0.0.1.example",
        "http://127.example.0.1",
        "http://user@localhost",
        "https://files.example/path",
        "https://",
        "files.example",
    ],
)
def test_an_address_at_which_others_could_read_a_link_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="public_endpoint"):
        S3Settings(bucket="statements", public_endpoint=address)
