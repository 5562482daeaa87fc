"""Settings say what is wrong with them, and what a profile changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from order_svc.contract import LOCAL_POLICY, PRODUCTION_POLICY, UpstreamContract
from order_svc.settings import OrderSettings

KEYS = ("a key of sixteen characters",)


def settings(**fields: object) -> OrderSettings:
    given = {
        "shard": "s1",
        "dsn": "postgresql://x",
        "tls_dir": Path("tls"),
        "subject_dir": Path("subject"),
        "upstream_targets": {"payments": "127.0.0.1:1", "fulfilment": "127.0.0.1:2"},
        "page_token_keys": KEYS,
        **fields,
    }
    return OrderSettings(**given)  # type: ignore[arg-type]


def test_in_production_an_upstream_without_a_contract_promises_nothing() -> None:
    rules = settings().rules()
    assert rules.contract("payments") == rules.contract("nobody") == UpstreamContract()
    assert rules.policy == PRODUCTION_POLICY
    assert settings().tick_s == 1.0


def test_the_local_profile_only_makes_waits_short_and_what_is_given_wins() -> None:
    local = settings(
        profile="local", policy={"probes_max": 3}, contracts={"payments": {"settle_window_s": 9}}
    )
    rules = local.rules()
    assert not rules.contract("payments").idempotent_submit
    assert rules.contract("payments").settle_window_s == 9
    assert rules.contract("fulfilment").idempotent_submit
    assert rules.policy.probes_max == 3
    assert rules.policy.cap_s == LOCAL_POLICY.cap_s


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kinds": {"gift": ("flowers",)}}, "needs flowers"),
        ({"kinds": {"gift": ()}}, "1 to 8 legs"),
        ({"kinds": {"gift": ("payments",) * 9}}, "1 to 8 legs"),
        ({"page_token_keys": ()}, "at least 16 characters"),
        ({"contracts": {"payments": {"idempotent": True}}}, "idempotent"),
        ({"policy": {"probes": 1}}, "probes"),
        ({"upstream_targets": {"payments": "nowhere"}}, "upstream_targets"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**fields)


def test_the_environment_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "SHARD": "s1",
        "DSN": "postgresql://x",
        "TLS_DIR": "tls",
        "SUBJECT_DIR": "subject",
        "PROFILE": "local",
        "UPSTREAM_TARGETS": json.dumps({"payments": "h:1"}),
        "KINDS": json.dumps({"payment": ["payments"]}),
        "CONTRACTS": json.dumps({"payments": {"idempotent_submit": True}}),
        "POLICY": json.dumps({"cap_s": 7}),
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"ORDERMESH_{name}", value)
    rules = OrderSettings().rules()
    assert rules.contract("payments").idempotent_submit
    assert rules.policy.cap_s == 7
