"""Every fault point of the platform with the story that passes it; a tidy test compares the list with the
code.

SERVICE: whose process dies. STORY: what a test does so that the point is passed.
"""

from dataclasses import dataclass
from enum import Enum


class Story(Enum):
    """What has to happen so that a point is passed."""

    CREATE = "an order is created"
    RECOVER = "a reply of the upstream is lost, and recovery finishes the order"
    RESUBMIT = "the upstream never saw the order, and it is submitted again"
    REDRIVE = "a parked order is redriven"
    RESOLVE = "a parked order is resolved by a person"
    UPDATE = "a settled order gets other labels"
    MOVE = "a user gets a dedicated bucket"
    MOVE_BACK = "a first try to give a user a dedicated bucket is taken back"


@dataclass(frozen=True)
class Point:
    name: str
    service: str
    story: Story


ORDER_SVC = "order_svc"
RECOVERY_SVC = "recovery_svc"
SHARD_PROXY = "shard_proxy"

MOVES = (
    *(
        Point(f"vip.{name}.{side}", SHARD_PROXY, Story.MOVE)
        for name in ("own", "copy", "freeze", "delta", "flip", "thaw")
        for side in ("before", "after")
    ),
    Point("vip.back.before", SHARD_PROXY, Story.MOVE_BACK),
    Point("vip.back.after", SHARD_PROXY, Story.MOVE_BACK),
    *(
        Point(f"{name}.{side}_commit", ORDER_SVC, Story.MOVE)
        for name in ("own_bucket", "freeze_bucket", "thaw_bucket", "import_keys")
        for side in ("before", "after")
    ),
)
"""Around each step of a move, in the proxy that drives it and in the shards that take part."""
POINTS = (
    Point("sweep.after_claim", RECOVERY_SVC, Story.RECOVER),
    Point("probe.before_call", RECOVERY_SVC, Story.RECOVER),
    Point("probe.after_call", RECOVERY_SVC, Story.RECOVER),
    Point("report.before_call", RECOVERY_SVC, Story.RECOVER),
    Point("report.after_call", RECOVERY_SVC, Story.RECOVER),
    Point("create.before_commit", ORDER_SVC, Story.CREATE),
    Point("create.after_commit", ORDER_SVC, Story.CREATE),
    Point("begin.before_commit", ORDER_SVC, Story.CREATE),
    Point("begin.after_commit", ORDER_SVC, Story.CREATE),
    Point("submit.before_call", ORDER_SVC, Story.CREATE),
    Point("submit.after_call", ORDER_SVC, Story.CREATE),
    Point("settle.before_commit", ORDER_SVC, Story.CREATE),
    Point("settle.after_commit", ORDER_SVC, Story.CREATE),
    Point("claim.after_commit", ORDER_SVC, Story.RECOVER),
    Point("report.before_commit", ORDER_SVC, Story.RECOVER),
    Point("report.after_commit", ORDER_SVC, Story.RECOVER),
    Point("redrive.before_commit", ORDER_SVC, Story.REDRIVE),
    Point("redrive.after_commit", ORDER_SVC, Story.REDRIVE),
    Point("resolve.before_commit", ORDER_SVC, Story.RESOLVE),
    Point("resolve.after_commit", ORDER_SVC, Story.RESOLVE),
    Point("update.before_commit", ORDER_SVC, Story.UPDATE),
    Point("update.after_commit", ORDER_SVC, Story.UPDATE),
)

RELAY_POINTS = (
    "lead.after_term",
    "relay.before_send",
    "relay.after_ack",
    "relay.after_cursor",
    "relay.after_rewind",
)
INDEX_POINTS = ("index.after_write", "index.after_refresh", "index.before_mark", "index.after_mark")
OBJECT_PUT_POINTS = ("s3.before_put", "s3.after_put")
OBJECT_PARTS_POINTS = ("s3.after_begin", "s3.after_part", "s3.before_complete", "s3.after_complete")
OBJECT_POINTS = (*OBJECT_PUT_POINTS, *OBJECT_PARTS_POINTS, "s3.after_delete")
"""Points of the port of S3. tests/faults/test_object_store_kills.py kills a process at each of them."""
ARCHIVE_POINTS = (
    "archive.after_freeze",
    "archive.after_plan",
    "archive.after_first_chunk",
    "archive.after_last_chunk",
    "archive.after_encode",
    "s3.before_put",
    "s3.after_put",
    "archive.after_segment",
    "archive.after_export",
    "archive.after_read_back",
    "archive.after_proof",
    "archive.before_manifest",
    "archive.after_manifest",
    "archive.before_commit",
    "archive.after_commit",
    "archive.before_detach",
    "archive.between_detaches",
    "archive.after_detach",
    "archive.after_grace",
    "archive.before_drop",
    "archive.after_drop",
)
"""A month's way out of a shard; tests/faults/test_archive_kills.py kills the process at each of them."""
ERASE_POINTS = ("archive.before_swap", "archive.after_swap", "archive.before_recall", "archive.before_delete")
"""A user's way out of the archive; killed there by the same tests."""
AMEND_POINTS = ("archive.after_amendment",)
"""An amendment's way; a process of its own dies there in the same tests."""
SWEEP_POINTS = ("archive.before_sweep",)
"""A walk over the objects in S3; killed there by the same tests."""
RESTORE_POINTS = ("archive.after_make_tables", "archive.after_copy_back", "archive.after_restore")
"""A month's way back; killed there by the same tests."""
STATEMENT_POINTS = (
    "statement.after_claim",
    "statement.after_plan",
    "statement.after_leg",
    "statement.after_render",
    "statement.after_put",
    "statement.after_ready",
)
MAIL_POINTS = ("statement.after_send", "statement.after_sent")
"""A statement's way; tests/faults/test_statement_kills.py kills its worker at each of them."""
KEEPER_POINTS = ("keeper.after_make",)
"""tests/integration/test_partition_keeper.py dies there; what is missing is made by the next look."""
CARE_POINTS = (
    "care.after_make",
    "care.after_copy",
    "care.before_serve",
    "care.after_serve",
    "care.after_reset",
)
READ_SIDE_POINTS = (*RELAY_POINTS, *INDEX_POINTS, *CARE_POINTS)
"""Points that no order waits for. tests/integration/test_relay.py, test_indexer.py and test_care.py die at
each of them, test_projector_process.py and tests/e2e/test_index_care.py kill the process there; no change is
missed.
"""

MOMENTS = {
    "after_freeze": "archive.after_freeze",
    "after_plan": "archive.after_plan",
    "after_copy_first_chunk": "archive.after_first_chunk",
    "after_copy_last_chunk": "archive.after_last_chunk",
    "after_encode": "archive.after_encode",
    "before_put": "s3.before_put",
    "after_put": "s3.after_put",
    "after_part_row": "archive.after_segment",
    "after_all_parts": "archive.after_export",
    "after_readback_part": "archive.after_read_back",
    "after_verified": "archive.after_proof",
    "after_manifest_put": "archive.after_manifest",
    "before_commit": "archive.before_commit",
    "after_commit": "archive.after_commit",
    "detach_phase1": "test_a_kill_between_the_halves_of_a_detach_is_ended_by_the_next_one",
    "detach_phase2": "archive.between_detaches",
    "after_detach": "archive.after_detach",
    "after_detach_row": "archive.after_grace",
    "drift_mid": "test_a_kill_while_the_tables_are_compared_a_last_time_drops_nothing",
    "after_grace_set": "archive.after_grace",
    "before_drop": "archive.before_drop",
    "after_drop": "archive.after_drop",
    "after_drop_row": "archive.after_drop",
    "statement: after_claim": "statement.after_claim",
    "statement: after_plan": "statement.after_plan",
    "statement: after_leg_n": "statement.after_leg",
    "statement: after_render": "statement.after_render",
    "statement: after_result_put": "statement.after_put",
    "statement: after_outbox": "statement.after_ready",
    "statement: smtp_after_data": "statement.after_send",
    "statement: after_sent_row": "statement.after_sent",
}
"""The moments at which an archiver or a maker of statements must be able to die, by the point that is passed
then, or the test that dies inside of a statement of Postgres. One row says that a month's tables stand alone
and from when they may go; the drop and its row are one transaction: these moments are one.
"""
