"""The closed list of what goes wrong between archive_svc and a shard, beside the errors of chassis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc import StatusCode

from chassis.errors import OrdermeshError, Reason

if TYPE_CHECKING:
    from archive_svc.segment import Step


class UnknownShard(OrdermeshError):
    """There is no shard of this name."""

    code, reason = StatusCode.NOT_FOUND, Reason.UNKNOWN_SHARD


class MonthNotFound(OrdermeshError):
    """The shard has no such month, neither in its tables nor in the archive."""

    code, reason = StatusCode.NOT_FOUND, Reason.MONTH_NOT_FOUND


class YoungerMonthFirst(OrdermeshError):
    """A younger month of this shard is archived and has to come back first: a list has no holes."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.YOUNGER_MONTH_FIRST


class MonthCommitted(OrdermeshError):
    """Readers read this month from its copy already, so it cannot be thawed; restore it instead."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION


class MonthInTables(OrdermeshError):
    """This month is read from its tables, so nothing is to be restored; thaw one that is about to leave."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION


class MonthAhead(OrdermeshError):
    """This month went further than it is asked to; let it be, or restore it."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION


class MonthComesBack(OrdermeshError):
    """This month is on its way back into its tables; it can leave again when it is there."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ILLEGAL_TRANSITION


class StorageUnavailable(OrdermeshError):
    """The archive's storage gives no answer now, or there is none; orders themselves are not affected."""

    code, reason = StatusCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE
    retry_after_s = 5.0


class ArchiveCold(OrdermeshError):
    """Some of the archive lies in cold storage and cannot be read; an operator has to restore it first."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.ARCHIVE_COLD


class LegalHold(OrdermeshError):
    """A legal hold keeps this user or month; whoever set it has to lift it first."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.LEGAL_HOLD


class LeaseLost(OrdermeshError):
    """Another process archives this shard by now; nothing more is done under the old lease."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED


class TurnLost(OrdermeshError):
    """Somebody else makes this statement by now, or it was ended; nothing more is done in the old turn."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED


class StatementNotFound(OrdermeshError):
    """The user has no such statement."""

    code, reason = StatusCode.NOT_FOUND, Reason.STATEMENT_NOT_FOUND


class StatementNotReady(OrdermeshError):
    """The statement cannot be downloaded: it is not ready, failed, was ended, or is gone."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.STATEMENT_NOT_READY

    def __init__(self, state: str, retry_after_s: float | None = None) -> None:
        super().__init__(state=state)
        self.retry_after_s = retry_after_s


class RequestIdReused(OrdermeshError):
    """This request_id was used before with another wish."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED


class StatementRunning(OrdermeshError):
    """Another statement of this user is being made; come back when it is there."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.STATEMENT_RUNNING

    def __init__(self, retry_s: float) -> None:
        super().__init__()
        self.retry_after_s = retry_s


class StatementLimit(StatementRunning):
    """This user asked for as many statements as one may; come back after the given delay."""

    reason = Reason.STATEMENT_LIMIT


class StatementTooLarge(OrdermeshError):
    """This period holds more than one statement may; ask for a shorter one."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_LARGE


class MailNotFound(OrdermeshError):
    """No statement of this id has a mail."""

    code, reason = StatusCode.NOT_FOUND, Reason.STATEMENT_NOT_FOUND


class MailNotDead(OrdermeshError):
    """This mail was not given up: it is to be sent, or was taken."""

    code, reason = StatusCode.FAILED_PRECONDITION, Reason.MAIL_NOT_DEAD


class ArchivedOrderNotFound(OrdermeshError):
    """No month that is read from the archive has this order of this user."""

    code, reason = StatusCode.NOT_FOUND, Reason.ORDER_NOT_FOUND


class PlacesUnknown(OrdermeshError):
    """The user has moved, and nobody can be asked now where to; it is tried again."""

    code, reason = StatusCode.UNAVAILABLE, Reason.STALE_ROUTE
    retry_after_s = 5.0


class StatementIncomplete(OrdermeshError):
    """What was read for a statement does not add up to what is known of it, so there is no statement.

    step: the proof that a segment failed; None when no single segment did.
    """

    code, reason = StatusCode.DATA_LOSS, Reason.STATEMENT_INCOMPLETE

    def __init__(self, step: Step | None = None, **facts: object) -> None:
        super().__init__(**facts)
        self.step = step


class OrdersMoved(OrdermeshError):
    """Orders left for the archive while they were being read; reading again finds them there."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED
    retry_after_s = 1.0


class OrdersUnsettled(OrdermeshError):
    """Orders of this period are still being written; reading again, once they are, finds them."""

    code, reason = StatusCode.ABORTED, Reason.CONTENDED
    retry_after_s = 1.0
