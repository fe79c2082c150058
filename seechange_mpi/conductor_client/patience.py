"""Patience with a database or conductor that is away for a while: what may pass is tried again, nothing else."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from seechange_mpi.conductor_client.protocol import Claim, ReleaseStatus, WorkSource
from seechange_mpi.model.errors import TransientError

T = TypeVar("T")
SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
_SLICE_S = 0.5
_NEVER_PASSES = ("28", "3D", "42", "0A")
"""SQLSTATE classes of `OperationalError` that no waiting mends: authentication, databases, privileges and names,
features."""


def may_pass(err: BaseException) -> bool:
    """Whether the same call may succeed later: a `TransientError`, a lost connection, a server that starts, stops
    or is full, a deadlock, a serialization failure."""
    if isinstance(err, TransientError):
        return True
    psycopg = sys.modules.get("psycopg")  # an error of a module that was never imported cannot have been raised
    if psycopg is None or not isinstance(err, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    return not (getattr(err, "sqlstate", None) or "").startswith(_NEVER_PASSES)


def reason_of(err: BaseException) -> str:
    """The first line of an error."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


def patiently(
    call: Callable[[], T],
    *,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    stop: Callable[[], object] = lambda: False,
    describe: str = "the database",
    tell: Callable[[str], None] = lambda _line: None,
) -> T:
    """Call until it succeeds, with jittered, growing pauses, for `patience_s`.

    The call must be whole in itself: it opens its own connection, and doing it twice is doing it once.

    Parameters
    ----------
    stop : asked before every pause and twice a second during it; it may raise, or return True to give up.
    describe : what is away, for messages.
    tell : is given a line when waiting begins and one when it ends well.

    Raises
    ------
    TransientError
        Time is up or `stop` said so: names what is away, for how long, and the last reason.
    """
    began = clock()
    attempts = 0
    while True:
        try:
            answer = call()
        except Exception as err:
            if not may_pass(err):
                raise
            attempts += 1
            left = began + patience_s - clock()
            if left <= 0 or bool(stop()):
                waited = f" (tried {attempts} times in {clock() - began:.0f} s)" if attempts > 1 else ""
                raise TransientError(f"{reason_of(err)}{waited}") from err
            if attempts == 1:
                tell(f"{describe} is away ({reason_of(err)}); trying again for {patience_s:.0f} s")
            longest = min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2.0**attempts)
            if _pause(min(random.uniform(SHORTEST_PAUSE_S, longest), left), clock, sleep, stop):
                raise TransientError(f"{reason_of(err)} (told to stop after {clock() - began:.0f} s)") from err
            continue
        if attempts:
            tell(f"{describe} is back after {clock() - began:.0f} s")
        return answer


def _pause(
    seconds: float, clock: Callable[[], float], sleep: Callable[[float], None], stop: Callable[[], object]
) -> bool:
    """Sleep in slices; return True as soon as `stop` says so."""
    end = clock() + seconds
    while (left := end - clock()) > 0:
        sleep(min(left, _SLICE_S))
        if stop():
            return True
    return False


class PatientSource:
    """A `WorkSource` whose claims and releases outlast an absence of the source behind it.

    A heartbeat is tried once: the next one follows soon, and a lease lives through several.

    Parameters
    ----------
    patience_s : how long a claim or a release is tried.
    stop : gives up waiting for a *claim*; a release is told for as long as patience lasts, whoever wants to stop,
        unless `stop_release` says so.
    """

    def __init__(
        self,
        source: WorkSource,
        patience_s: float,
        stop: Callable[[], object] = lambda: False,
        *,
        stop_release: Callable[[], object] = lambda: False,
        tell: Callable[[str], None] = lambda _line: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source, self.patience_s = source, patience_s
        self._stop, self._stop_release = stop, stop_release
        self._common: dict[str, Any] = {"patience_s": patience_s, "clock": clock, "sleep": sleep, "tell": tell,
                                        "describe": "the queue"}

    def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Return the next exposure, or None when nothing is ready.

        Raises
        ------
        TransientError
            The source stayed away.
        """
        return patiently(lambda: self.source.claim(owner, lease_s), stop=self._stop, **self._common)

    def heartbeat(self, claim: Claim, lease_s: float) -> bool:
        """Extend the lease; False when it was lost."""
        return self.source.heartbeat(claim, lease_s)

    def release(self, claim: Claim, status: ReleaseStatus, counts: dict[str, int], message: str = "") -> None:
        """Say how it went.

        Raises
        ------
        TransientError
            The source stayed away; the lease will expire, and nothing is lost.
        """
        self._tell(claim, status, lambda: self.source.release(claim, status, counts, message))

    def fail(self, claim: Claim, message: str, counts: dict[str, int]) -> None:
        """The exposure failed.

        Raises
        ------
        TransientError
            The source stayed away; the lease will expire, and nothing is lost.
        """
        self._tell(claim, "failed", lambda: self.source.fail(claim, message, counts))

    def _tell(self, claim: Claim, word: str, call: Callable[[], None]) -> None:
        try:
            patiently(call, stop=self._stop_release, **self._common)
        except TransientError as err:
            raise TransientError(
                f"the queue could not be told that {claim.identifier} is {word.replace('_', ' ')}: {err}; its lease "
                "will expire by itself and a later run finds everything that is durable"
            ) from err
