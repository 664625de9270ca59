"""Clocks that are set under a running agent: its own clock only, by libfaketime. See also `tests/it/clock.rs`."""

import datetime
import glob
import time

import wire
from agent import Agent, Failure, Load, Stream, Seen, check, nothing_is_lost

# The agent looks at the clock every 5 seconds.
PATIENCE = 20
HOUR = 3600


class Hand:
    """Moves the agent's wall clock; time passes as it does."""

    def __init__(self, work):
        found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
        if not found:
            raise Failure("libfaketime is not installed (Debian: libfaketime)")
        self.by, self.file = 0, work.parent / f"{work.name}.time"
        self.environment = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.file.parent.chmod(0o755)
        self.set(0)

    def set(self, seconds):
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.rename(self.file)
        self.by = seconds

    def now(self):
        return time.time() + self.by

    def is_good(self, svid):
        """Whether it is valid by this clock, and for a while yet."""
        begin, end = (
            datetime.datetime.strptime(at, "%y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp()
            for at in svid[2:4]
        )
        return begin <= self.now() < end - 60


def the_clock_is_set(work):
    """The agent's clock is set by +1 h, back, +1 day, back, -1 h, back, -1 day and back, while calls run."""
    hand, agent, slowest, refused = Hand(work), Agent(work), 0, 0
    agent.start(environment=hand.environment)
    with Load(agent) as load:
        load.gives(20)
        for jump in (HOUR, 24 * HOUR, -HOUR, -24 * HOUR):
            for by in (jump, 0):
                with Stream(agent) as stream:
                    latest, begin = stream.first, time.monotonic()
                    check(hand.is_good(latest), f"before {by:+}: {latest}")
                    hand.set(by)
                    # A caller that asks anew has what is valid by the new clock, or nothing.
                    try:
                        fresh = wire.fetch_x509(agent.socket)
                        check(fresh[3] > time.strftime("%y%m%d%H%M%SZ", time.gmtime(hand.now())), f"{by:+}: expired: {fresh}")
                    except wire.Failed as failed:
                        check(failed.kind == "UNAVAILABLE", str(failed))
                        refused += 1
                    while not hand.is_good(latest):
                        latest = stream.next(PATIENCE)
                    slowest = max(slowest, time.monotonic() - begin)
                load.gives(20)
            check(agent.status()["ready"], agent.status()["parts"])
    load.only("UNAVAILABLE")
    # And when nobody asks, who would make the agent look.
    alone = 0
    for by in (-24 * HOUR, 0):
        with Stream(agent) as stream:
            hand.set(by)
            begin, latest = time.monotonic(), stream.first
            while not hand.is_good(latest):
                latest = stream.next(PATIENCE)
            alone = max(alone, time.monotonic() - begin)
    check(not agent.panicked(), agent.panicked())
    said = agent.line("the clock was set")
    agent.audit_verifies()
    # With leeway for the restart in between.
    expired = {one for one, end in load.ends.items() if end < hand.now() + PATIENCE}
    check(0 < len(expired) < len(load.given), f"{len(expired)} of {len(load.given)} have expired")
    given = nothing_is_lost(agent, load.given, expired)
    return Seen(
        f"open streams bring an SVID that is valid by the new clock within {slowest:.1f} s (within {alone:.1f} s when nobody else asks); no expired one is handed out ({load.seen()})",
        f"nothing ({given} checked; of the {len(expired)} that have expired, in the audit log)",
        said,
        "by itself: a CA that would begin in the future is replaced",
    )


def a_restart_while_the_clock_is_ahead(work):
    """The clock is set forward by a day, the agent is restarted, and the clock is set right again."""
    hand, agent = Hand(work), Agent(work)
    agent.start(environment=hand.environment)
    with Load(agent) as before:
        before.gives(50)
    with wire.Connection(agent.socket) as connection:
        token = wire.tokens_of(connection.call("FetchJWTSVID", wire.field(1, "demo")))[0]
    check(wire.is_valid(agent.socket, token), "a token is refused that was just issued")
    revoked = wire.fetch_x509(agent.socket)[1]
    agent.out("credential", "revoke", revoked)
    hand.set(24 * HOUR)
    agent.stop()
    agent.start(environment=hand.environment)
    with Load(agent) as ahead:
        ahead.gives(50)
    hand.set(0)
    with Stream(agent) as stream:
        latest = stream.first
        while not hand.is_good(latest):
            latest = stream.next(PATIENCE)
    known = agent.ledger()
    check(wire.is_valid(agent.socket, token), "a token of before is refused")
    known = agent.ledger()
    forgotten = [one for one in (*before.given, revoked) if one not in known]
    check(not forgotten, f"{len(forgotten)} of {len(before.given)} that had expired by that clock are forgotten")
    check(known[revoked]["standing"] != "stands", "what was revoked stands again")
    standing = [one for one in ahead.given if known.get(one, {}).get("standing") == "stands"]
    check(len(standing) == len(ahead.given), "what was issued while the clock was ahead is not known")
    agent.out("credential", "revoke", standing[0])
    check(agent.ledger()[standing[0]]["standing"] != "stands", "what was issued while the clock was ahead cannot be revoked")
    check(not agent.panicked(), agent.panicked())
    said = agent.line("the clock was set")
    given = nothing_is_lost(agent, [*before.given, *ahead.given])
    return Seen(
        "streams bring what is valid by the new clock each time",
        f"nothing ({given} checked): what had expired by that clock is known, and what was revoked is. What was issued meanwhile lasts a day "
        "longer, and can be revoked",
        said,
        "by itself",
    )
