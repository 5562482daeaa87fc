"""Who is asking on the plain listener: a person at this machine, or the user whose bearer token they brought.

Only for loopback, and only when the listener was asked for. The mTLS listener uses chassis.auth.Entrance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chassis.auth import ROLES_OF_PEERS, TRUST_DOMAIN, Asking, Subject
from chassis.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chassis.auth import SubjectMinter
    from chassis.bearers import Bearers

DEV = "dev"


@dataclass(frozen=True, slots=True)
class PlainEntrance:
    """The listener without certificates: the caller is `dev`, on its own behalf or on that of a token's
    user.

    bearers: None accepts no token.
    """

    minter: SubjectMinter
    bearers: Bearers | None

    def __call__(self, auth_context: Mapping[str, Any], metadata: Mapping[str, str]) -> Asking:
        """Identify by bearer token where there is one. Raises: Unauthenticated, KeysUnavailable."""
        said = metadata.get("authorization")
        if said is None:
            subject = Subject(DEV, ROLES_OF_PEERS[DEV], TRUST_DOMAIN + DEV)
        elif self.bearers is None:
            raise Unauthenticated
        else:
            subject = self.bearers.principal_at_once(said).subject
        return Asking(DEV, subject, self.minter.mint(subject))
