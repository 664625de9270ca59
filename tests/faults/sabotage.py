"""Ways to break what the faults check, each of which must be found: a check that cannot fail says nothing."""

import contextlib
import functools
import glob
import pathlib
import signal
from unittest import mock

import agent
import callers
import clock
import death
import disk
import host
import store


@contextlib.contextmanager
def before_each_start(harm):
    """`harm` is done to the agent's files before each start but the first."""
    start, started = agent.Agent.start, set()

    def harmed(self, *arguments, **more):
        if self in started:
            harm(self)
        started.add(self)
        return start(self, *arguments, **more)

    with mock.patch.object(agent.Agent, "start", harmed):
        yield


def newest(running, pattern):
    return pathlib.Path(sorted(glob.glob(f"{running.state}/{pattern}"))[-1])


def half_of_the_ledger_is_gone(running):
    path = newest(running, "ledger/*.log")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_of_the_audit_log_is_gone(running):
    path = newest(running, "audit/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def the_copy_of_the_store_is_gone(running):
    (running.state / "store.copy").unlink()


def an_answer_was_a_lie():
    change = death.Changes.change

    def lied(self):
        self.created.append("never-made")
        change(self)

    return mock.patch.object(death.Changes, "change", lied)


def the_agent_dies_where_it_should_not():
    gives = agent.Load.gives

    def dies(self, more=1):
        self.agent.child.send_signal(signal.SIGKILL)
        return gives(self, more)

    return mock.patch.object(agent.Load, "gives", dies)


def the_disk_has_room():
    return mock.patch.object(disk, "full", contextlib.nullcontext)


def the_agent_does_not_follow_the_clock():
    move = clock.Hand.set

    def stuck(self, seconds):
        move(self, 0)
        self.by = seconds

    return mock.patch.object(clock.Hand, "set", stuck)


def an_identity_for_which_nobody_vouches():
    entry = host.OF_A_UNIT.replace(', "systemd:fragment_path:/etc/systemd/system/web.service"', "")
    return mock.patch.object(host, "OF_A_UNIT", entry)


def the_agent_has_no_share_of_the_processors():
    made, make = [], callers.group

    @contextlib.contextmanager
    def one(name, controller):
        if made:
            yield made[0]
            return
        with make(name, controller) as first:
            made.append(first)
            yield first

    return mock.patch.object(callers, "group", one)


def harm(how):
    return functools.update_wrapper(lambda: before_each_start(how), how)


# What is broken, in which fault, and what must be said of it.
WAYS = [
    (harm(half_of_the_ledger_is_gone), death.sigterm_in_the_middle_of_writes, {"times": 1}, "are not in the ledger"),
    (harm(half_of_the_audit_log_is_gone), disk.the_ledger_is_torn, {}, "are not in the audit log"),
    (harm(the_copy_of_the_store_is_gone), store.the_store_is_damaged_before_a_start, {"flips": 0}, "does not start"),
    (an_answer_was_a_lie, death.sigterm_in_the_middle_of_writes, {"times": 1}, "entries that were answered are gone"),
    (the_agent_dies_where_it_should_not, host.run_is_full, {}, "more answers did not happen"),
    (the_disk_has_room, disk.the_disk_of_the_state_is_full, {}, "more failures did not happen"),
    (the_agent_does_not_follow_the_clock, clock.the_clock_is_set, {}, "expired"),
    (an_identity_for_which_nobody_vouches, host.the_message_bus_hangs_and_goes, {}, "an identity for which nobody vouched"),
    (the_agent_has_no_share_of_the_processors, callers.a_storm_of_callers, {"seconds": 3, "processes": 200}, "in the storm"),
]
