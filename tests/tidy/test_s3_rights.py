"""The rights that operators give archive_svc are those that its calls of S3 need, no more and no fewer."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session
from botocore.validate import ParamValidator
from pydantic import ValidationError

from archive_svc.statement import files
from archive_svc.statement.settings import StatementSettings

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
CLIENTS = {"_client", "_links"}
"""What the store calls the driver's clients: the one that it asks by, and the one that signs links."""
OF_OUR_OWN_STACKS = {"create_bucket", "put_bucket_versioning"}
BYPASSES = "s3:BypassGovernanceRetention"
OF_THE_BUCKET = {"s3:ListBucket", "s3:ListBucketMultipartUploads"}


def calls(source: str) -> Iterator[str]:
    """The methods of the driver's client that a module calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            if isinstance(value, ast.Attribute) and value.attr in CLIENTS:
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


def of_the_bucket(name: str) -> Any:
    """A file that operators give the bucket."""
    return json.loads((ROOT / "deploy/s3" / name).read_text(encoding="utf-8"))


def test_what_the_bucket_refuses_is_written_by_nobody() -> None:
    (rule,) = of_the_bucket("bucket.json")["Statement"]
    assert (rule["Effect"], rule["Action"]) == ("Deny", "s3:PutObject")
    assert rule["Condition"]["Null"] == {"s3:if-none-match": "true"}
    # `replace` writes on another condition.
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "archive_svc").rglob("*.py")}
    writers = {"create", "upload"}
    written = {
        name for text in sources.values() for name in re.findall(r"store\.(create|upload|replace)\(", text)
    }
    assert written == writers


def test_the_rules_of_the_bucket_are_rules_and_touch_no_month() -> None:
    rules = of_the_bucket("lifecycle.json")
    service = Session().get_service_model("s3")
    shape = service.operation_model("PutBucketLifecycleConfiguration").input_shape
    found = ParamValidator().validate({"Bucket": "b", "LifecycleConfiguration": rules}, shape)
    assert not found.has_errors(), found.generate_report()
    deletes = [rule for rule in rules["Rules"] if {"Expiration", "NoncurrentVersionExpiration"} & rule.keys()]
    assert [rule["Filter"] for rule in deletes] == [
        {"Prefix": files.statements_prefix("s1").partition("/")[0] + "/"}
    ]


def test_no_rule_of_the_bucket_removes_a_statement_that_can_be_downloaded() -> None:
    (days,) = (
        rule["Expiration"]["Days"]
        for rule in of_the_bucket("lifecycle.json")["Rules"]
        if "Expiration" in rule
    )
    assert StatementSettings(keep_days=90).turns().kept < timedelta(days=days)
    with pytest.raises(ValidationError):
        StatementSettings(keep_days=days - 1)
    for page in ("archive-old-months.md", "ask-for-a-statement.md"):
        assert f"after {days}" in (ROOT / "docs/howto" / page).read_text(encoding="utf-8"), page


@pytest.mark.parametrize("source", ["self._client.get_object_acl()", "x._client.copy_object(Key=key)"])
def test_a_call_without_rights_would_be_seen(source: str) -> None:
    assert set(calls(source)) - set(NEEDS) - OF_OUR_OWN_STACKS
