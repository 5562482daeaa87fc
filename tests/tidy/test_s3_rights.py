"""The rights that operators give archive_svc are those that its calls of S3 need, no more and no fewer."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READS = {"s3:GetObject", "s3:GetObjectVersion"}
NEEDS = {
    "head_bucket": {"s3:ListBucket"},
    "list_objects_v2": {"s3:ListBucket"},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "head_object": READS | {"s3:GetObjectRetention"},
    "get_object": READS,
    "generate_presigned_url": READS,
    "put_object": {"s3:PutObject", "s3:PutObjectRetention"},
    "create_multipart_upload": {"s3:PutObject", "s3:PutObjectRetention"},
    "upload_part": {"s3:PutObject"},
    "complete_multipart_upload": {"s3:PutObject"},
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject", "s3:DeleteObjectVersion"},
}
"""By the calls of the driver. Source: "Actions, resources, and condition keys for Amazon S3"."""
OF_OUR_OWN_STACKS = {"create_bucket", "put_bucket_versioning"}
BYPASSES = "s3:BypassGovernanceRetention"
OF_THE_BUCKET = {"s3:ListBucket", "s3:ListBucketMultipartUploads"}


def calls(source: str) -> Iterator[str]:
    """The methods of the driver's client that a module calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            if isinstance(value, ast.Attribute) and value.attr == "_client":
                yield node.func.attr


def given() -> dict[str, set[str]]:
    """The actions of the policy that operators copy, by what they are about."""
    policy = json.loads((ROOT / "deploy/s3/archive_svc.json").read_text(encoding="utf-8"))
    return {each["Resource"]: set(each["Action"]) for each in policy["Statement"]}


def test_every_call_of_s3_has_its_rights_and_no_right_is_without_a_call() -> None:
    modules = (ROOT / "chassis/s3").glob("*.py")
    made = {call for module in modules for call in calls(module.read_text(encoding="utf-8"))}
    assert made - OF_OUR_OWN_STACKS == set(NEEDS)
    assert set().union(*given().values()) == set().union(*NEEDS.values())
    assert given()["arn:aws:s3:::BUCKET"] == OF_THE_BUCKET


def test_the_howto_names_every_right_and_the_one_that_is_asked_for_apart() -> None:
    howto = (ROOT / "docs/howto/archive-old-months.md").read_text(encoding="utf-8")
    for right in {*set().union(*given().values()), BYPASSES}:
        assert f"`{right}`" in howto, right
    assert BYPASSES not in set().union(*given().values())


@pytest.mark.parametrize("source", ["self._client.get_object_acl()", "x._client.copy_object(Key=key)"])
def test_a_call_without_rights_would_be_seen(source: str) -> None:
    assert set(calls(source)) - set(NEEDS) - OF_OUR_OWN_STACKS
