"""The local stack's certificates: names, lifetimes, renewal without a mixed pair, keys kept private."""

import json
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ops import ca

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def certificate(leaf: ca.Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificate(leaf.cert.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def verify(tls: Path, leaf: ca.Leaf, name: str, at: datetime) -> None:
    authority = x509.load_pem_x509_certificate((tls / "ca.pem").read_bytes())
    policy = PolicyBuilder().store(Store([authority])).time(at)
    policy.build_server_verifier(x509.DNSName(name)).verify(certificate(leaf), [])


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    ca.ensure_ca(tmp_path / "tls", at=NOON)
    return tmp_path / "tls"


def test_a_leaf_is_good_under_its_own_name_only_and_for_a_day(tls: Path) -> None:
    leaf = ca.issue_leaf(tls, "order_svc", at=NOON)
    verify(tls, leaf, "order-svc.ordermesh", NOON)
    verify(tls, leaf, "localhost", NOON + timedelta(hours=23))
    with pytest.raises(VerificationError):
        verify(tls, leaf, "shard-proxy.ordermesh", NOON)
    with pytest.raises(VerificationError):
        verify(tls, leaf, "order-svc.ordermesh", NOON + timedelta(hours=24, seconds=1))


def test_a_leaf_has_exactly_one_uri_the_spiffe_id(tls: Path) -> None:
    names = certificate(ca.issue_leaf(tls, "gateway", at=NOON)).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://ordermesh/gateway"]


def test_a_new_stack_gets_every_leaf_and_a_fresh_one_is_left_alone(tls: Path) -> None:
    issued = ca.renew_due(tls, at=NOON)
    assert [leaf.service for leaf in issued] == list(ca.SERVICES)
    assert ca.renew_due(tls, at=NOON + timedelta(hours=15)) == []


def test_a_renewal_in_the_last_third_of_life_keeps_the_key_so_readers_never_see_a_mixed_pair(
    tls: Path,
) -> None:
    (before,) = ca.renew_due(tls, ["order_svc"], at=NOON)
    key, first = before.key.read_bytes(), certificate(before)
    (after,) = ca.renew_due(tls, ["order_svc"], at=NOON + timedelta(hours=17))
    assert after.key.read_bytes() == key
    assert certificate(after).serial_number != first.serial_number
    assert certificate(after).not_valid_after_utc == NOON + timedelta(hours=41)


@pytest.mark.parametrize("damage", ["cert.pem", "key.pem"])
def test_a_damaged_or_missing_file_of_a_leaf_is_replaced_by_a_pair_that_fits(tls: Path, damage: str) -> None:
    (leaf,) = ca.renew_due(tls, ["upstream"], at=NOON)
    (tls / "upstream" / damage).write_text("no PEM")
    (leaf,) = ca.renew_due(tls, ["upstream"], at=datetime.now(UTC))
    context = ssl.create_default_context(cafile=tls / "ca.pem")
    context.load_cert_chain(leaf.cert, leaf.key)  # Raises when they are no pair.


def test_an_authority_is_kept_until_its_files_no_longer_belong_together_and_then_voids_all_leaves(
    tls: Path,
) -> None:
    ca.renew_due(tls, ["ops"], at=NOON)
    first = (tls / "ca.pem").read_bytes()
    ca.ensure_ca(tls, at=NOON + timedelta(days=365))
    assert (tls / "ca.pem").read_bytes() == first
    (tls / "ca.key").unlink()
    (leaf,) = ca.renew_due(tls, ["ops"], at=NOON)
    assert (tls / "ca.pem").read_bytes() != first
    verify(tls, leaf, "ops.ordermesh", NOON)


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    ca.renew_due(tmp_path / "tls")
    ca.ensure_subject_keys(tmp_path / "subject")
    ca.ensure_issuer(tmp_path / "issuer")
    keys = [*tmp_path.rglob("*.key"), *tmp_path.rglob("key.pem")]
    assert len(keys) == 1 + 2 + 1 + len(ca.SERVICES)
    assert {mode(path) for path in keys} == {0o600}
    assert not list(tmp_path.rglob("*.partial"))


def test_subject_keys_are_ed25519_pairs_that_stay(tmp_path: Path) -> None:
    ca.ensure_subject_keys(tmp_path)
    kept = (tmp_path / "gateway.key").read_bytes()
    ca.ensure_subject_keys(tmp_path)
    assert (tmp_path / "gateway.key").read_bytes() == kept
    token = jwt.encode({"sub": "alice"}, kept, algorithm="EdDSA")
    public = (tmp_path / "gateway.pub").read_bytes()
    assert jwt.decode(token, public, algorithms=["EdDSA"])["sub"] == "alice"
    other = (tmp_path / "shard_proxy.pub").read_bytes()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, other, algorithms=["EdDSA"])


def test_the_issuer_publishes_the_key_it_signs_with_under_its_thumbprint(tmp_path: Path) -> None:
    issuer = ca.ensure_issuer(tmp_path)
    assert ca.ensure_issuer(tmp_path) == issuer
    keys = jwt.PyJWKSet.from_dict(json.loads(issuer.jwks.read_text()))
    signing = issuer.key.read_bytes()
    token = jwt.encode({"sub": "alice"}, signing, algorithm="ES256", headers={"kid": issuer.kid})
    assert jwt.decode(token, keys[issuer.kid], algorithms=["ES256"])["sub"] == "alice"
