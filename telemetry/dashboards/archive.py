"""Months that leave for S3, partitions to come, statements, their mails, and the calls of S3."""

from __future__ import annotations

from telemetry.dashboards.board import SHARD, Board, Panel, Replicas, Row, Sql
from telemetry.dashboards.expressions import agreed, gauge, quantiles, rate, spread
from telemetry.dashboards.watching import watch

_SHARD = 'shard=~"$shard"'
_ASKED = "no month was asked to be archived."

BOARD = Board(
    name="archive",
    title="Archive and statements",
    says="Partitions ahead of the clock, months on their way to S3, statements and their mails.",
    variables=(SHARD, Replicas()),
    rows=(
        Row(
            "Partitions",
            (
                watch(
                    "PartitionsShort",
                    "Time until partitions end",
                    "From now on, by table. Without a partition a shard takes no orders.",
                    unit="s",
                ),
                watch(
                    "PartitionsAreNotMade",
                    "Time until months end",
                    "From now on. With two months ahead of the current one it is never below 59 days.",
                    unit="s",
                ),
                Panel(
                    "series",
                    "Partitions made, or not",
                    "Missing ones that were made, and those that could not be.",
                    (
                        rate("ordermesh_partitions_made_total", "shard", "table", where=_SHARD),
                        rate(
                            "ordermesh_partition_failures_total",
                            "shard",
                            "reason",
                            where=_SHARD,
                            legend="{{shard}} failed: {{reason}}",
                            empty_when_healthy="no partition was ever refused.",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Months",
            (
                Panel(
                    "series",
                    "Months by where they stand",
                    "Months that were asked to be archived.",
                    (agreed("ordermesh_archive_months", "shard", "state", where=_SHARD),),
                    stacked=True,
                ),
                Panel(
                    "table",
                    "The newest months",
                    "Of the shard whose replica is chosen above.",
                    (Sql("archived_months", _ASKED),),
                ),
                Panel(
                    "series",
                    "Rows and bytes stored",
                    "Rows written into segments, restored and erased a second.",
                    (
                        rate("ordermesh_archive_rows_total", "table", where=_SHARD),
                        rate(
                            "ordermesh_archive_restored_rows_total",
                            "table",
                            where=_SHARD,
                            legend="{{table}} restored",
                        ),
                        rate(
                            "ordermesh_archive_erased_rows_total",
                            "table",
                            where=_SHARD,
                            legend="{{table}} erased",
                        ),
                    ),
                ),
                watch(
                    "ArchiveDamaged",
                    "Segments that did not read back",
                    "As they were written, by the proof that failed. Nothing of them was deleted.",
                ),
                watch(
                    "ArchiveStuck",
                    "Months that do not go on",
                    "The same thing fails again and again. Nothing of them was deleted.",
                ),
                watch(
                    "ArchiveWaitsForAPerson",
                    "Months set aside",
                    "They wait for a person; nothing of them was deleted.",
                ),
                watch(
                    "MonthsStay",
                    "Months that were to leave",
                    "For how long the oldest has been due; and how many hang on their tables by half.",
                    unit="s",
                ),
                watch(
                    "ErasuresWait",
                    "Users who are to be erased",
                    "For how long the oldest waits that nothing holds; and tries that failed in an hour.",
                    unit="s",
                ),
                watch(
                    "CatalogBehind",
                    "Catalogs that know too little",
                    "1 while the last walk over the bucket met copies that the shard does not know.",
                ),
                watch(
                    "ArchiveHalted",
                    "Kill switch",
                    "For how long it has kept the tables of each shard; nothing while it is off.",
                    unit="s",
                    more=(
                        gauge(
                            "ordermesh_archive_halted",
                            "shard",
                            where=_SHARD,
                            legend="1 while {{shard}} is halted",
                            of="max",
                        ),
                    ),
                ),
                Panel(
                    "series",
                    "Failures by what was done",
                    "What was done to a month, failed, and is done again.",
                    (rate("ordermesh_archive_failures_total", "shard", "action", where=_SHARD),),
                    unit="ops",
                ),
                Panel(
                    "series",
                    "Bytes to and from S3",
                    "Stored, read back and compared, and read for statements.",
                    (
                        rate("ordermesh_archive_stored_bytes_total", where=_SHARD, legend="stored"),
                        rate("ordermesh_archive_read_back_bytes_total", where=_SHARD, legend="read back"),
                        rate(
                            "ordermesh_archive_statement_read_bytes_total",
                            where=_SHARD,
                            legend="for statements",
                        ),
                    ),
                    unit="Bps",
                ),
                Panel(
                    "series",
                    "Objects that nothing names",
                    "As the last walk over the bucket found them, and those that were deleted.",
                    (
                        gauge("ordermesh_archive_strays", "shard", where=_SHARD, of="max"),
                        rate("ordermesh_archive_swept_total", "kind", legend="{{kind}} deleted a second"),
                        rate("ordermesh_archive_uploads_given_up_total", legend="uploads given up a second"),
                    ),
                ),
                Panel(
                    "series",
                    "Bytes that nothing names",
                    "How large those objects are.",
                    (gauge("ordermesh_archive_stray_bytes", "shard", where=_SHARD, of="max"),),
                    unit="bytes",
                ),
                Panel(
                    "series",
                    "Checks",
                    "Segments read once more and found whole.",
                    (rate("ordermesh_archive_checked_total", legend="checked a second"),),
                ),
            ),
        ),
        Row(
            "Statements and mails",
            (
                Panel(
                    "series",
                    "Statements that are not over",
                    "By where they stand.",
                    (agreed("ordermesh_statements", "state", where=_SHARD),),
                    stacked=True,
                ),
                Panel(
                    "series",
                    "Turns at statements",
                    "By what came of them: a statement may need several.",
                    (
                        rate("ordermesh_statement_turns_total", "outcome", where=_SHARD),
                        rate("ordermesh_statements_expired_total", where=_SHARD, legend="expired"),
                        rate("ordermesh_statement_files_removed_total", where=_SHARD, legend="files removed"),
                    ),
                    unit="ops",
                ),
                watch(
                    "StatementsAreNotMade",
                    "Oldest statement that is not over",
                    "How long ago it was asked for, on each shard.",
                    unit="s",
                ),
                watch(
                    "StatementsFail",
                    "Statements given up",
                    "In the last hour, of each shard: their users were told so, and get none.",
                ),
                Panel(
                    "series",
                    "Time of a turn",
                    "Half, and 99 of 100, are faster.",
                    quantiles("ordermesh_statement_turn_seconds", "outcome"),
                    unit="s",
                ),
                watch(
                    "StatementsWait",
                    "Oldest mail that waits",
                    "For how long the oldest mail of each shard is to be sent.",
                    unit="s",
                ),
                watch(
                    "MailsAreDead",
                    "Mails given up",
                    "Nobody tries them any more until somebody says so.",
                ),
                Panel(
                    "series",
                    "Mails",
                    "That wait, and tries by what came of them.",
                    (
                        agreed("ordermesh_statement_mails_waiting", where=_SHARD, legend="wait"),
                        rate("ordermesh_statement_mails_total", "outcome", where=_SHARD),
                    ),
                ),
                Panel(
                    "heatmap",
                    "Size of files",
                    "How large statements are.",
                    (spread("ordermesh_statement_file_bytes"),),
                    unit="bytes",
                ),
            ),
        ),
        Row(
            "Calls of S3",
            (
                Panel(
                    "series",
                    "Calls by how they ended",
                    "`exists` and `not_found` are answers, not faults.",
                    (rate("ordermesh_object_calls_total", "call", "outcome", seen=True),),
                    unit="reqps",
                ),
                Panel(
                    "series",
                    "Time of a call",
                    "With all its tries: half, and 99 of 100, are faster.",
                    quantiles("ordermesh_object_call_seconds", "call"),
                    unit="s",
                ),
                Panel(
                    "series",
                    "Bytes and repeated tries",
                    "Bytes of bodies that went to and fro; tries that had to be repeated.",
                    (
                        rate("ordermesh_object_bytes_total", "direction"),
                        rate("ordermesh_object_retries_total", "cause", legend="tries: {{cause}}"),
                    ),
                ),
            ),
        ),
    ),
)
