"""Agents that die in the middle of everything, and hosts without memory."""

import contextlib
import pathlib
import random
import re
import signal
import threading
import time

from agent import Agent, Caller, Load, Seen, check, group, nothing_is_lost, until

ANOTHER = '[[entry]]\nid = "{id}"\nspiffe_id = "spiffe://faults.test/{id}"\nmatch = ["unix:uid:5"]\nowner = "faults"\n'
# How callers learn that an agent is gone: their connection ends, or there is nobody to connect to.
GONE = ("goaway", "refused", "reset", "UNAVAILABLE", "CANCELLED")


class Changes:
    """An operator who creates entries and rotates authorities without a break. What was answered is kept."""

    def __init__(self, agent, work):
        self.agent, self.file, self.created = agent, work.parent / f"{work.name}.toml", []
        self.end, self.thread = threading.Event(), threading.Thread(target=self.change, daemon=True)

    def change(self):
        number = 0
        while not self.end.is_set():
            number += 1
            self.file.write_text(ANOTHER.format(id=f"made-{number}"))
            if self.agent.tool("entry", "create", "--file", self.file).returncode == 0:
                self.created.append(f"made-{number}")
            self.agent.tool("authority", "rotate", "--now")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join(60)

    def are_there(self):
        listed = self.agent.out("entry", "list")
        missing = [one for one in self.created if one not in listed]
        check(not missing, f"{len(missing)} of {len(self.created)} entries that were answered are gone: {missing[:3]}")
        return len(self.created)


def dies(work, how, times, last_words):
    agent, gaps, dice = Agent(work), [], random.Random(6)
    agent.start()
    with Load(agent, callers=3) as load, Changes(agent, work) as changes:
        for _ in range(times):
            load.gives(1)
            time.sleep(dice.uniform(0.0, 0.3))
            agent.end(how)
            died = time.monotonic()
            agent.start()
            load.gives(1)
            gaps.append(time.monotonic() - died)
    load.only(*GONE)
    check(not agent.panicked(), agent.panicked())
    created = changes.are_there()
    given = nothing_is_lost(agent, load.given)
    created = changes.are_there()
    gaps.sort()
    return Seen(
        f"resets, refused connections, Unavailable; {load.seen()}",
        f"nothing: {given} credentials and {created} entries that were answered are in ledger, audit log and store",
        last_words,
        f"{times} of {times} starts; answers again after {gaps[len(gaps) // 2]:.1f} s (median), {gaps[-1]:.1f} s (longest) "
        "without a socket unit that keeps connections waiting",
    )


def kill_9_in_the_middle_of_writes(work, times=30):
    """SIGKILL at random moments, while calls run, entries are created and authorities rotated."""
    return dies(work, signal.SIGKILL, times, "nothing of its end; `agent_started`")


def sigterm_in_the_middle_of_writes(work, times=10):
    """SIGTERM at random moments, under the same load."""
    return dies(work, signal.SIGTERM, times, "`agent_stopped`, `agent_started`")


def out_of_memory(work):
    """The agent's control group has little memory left, then none, and the kernel kills the agent while calls run."""
    agent = Agent(work)
    with group("memory", "memory") as memory, contextlib.ExitStack() as at_last:
        at_last.callback(agent.kill)
        agent.start(group=memory)
        first = memory / "memory.limit_in_bytes", memory / "memory.oom_control"
        limit, events = first if first[0].exists() else (memory / "memory.max", memory / "memory.events")
        with Load(agent, callers=3) as load:
            load.gives(100)
            # What the kernel can read again from files it takes back first, and that takes its time.
            status = pathlib.Path(f"/proc/{agent.pid()}/status").read_text()
            anonymous = int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) << 10
            # What it cannot put elsewhere it must have.
            swap = memory / ("memory.swappiness" if first[0].exists() else "memory.swap.max")
            with contextlib.suppress(FileNotFoundError):  # this kernel has none
                swap.write_text("0")
            # Tight: what it reads from files goes and comes.
            limit.write_text(str(anonymous + (12 << 20)))
            load.gives(200)
            longest = load.longest
            for more in range(1, 64):
                with contextlib.suppress(OSError):  # less than it cannot do without
                    limit.write_text(str(anonymous + (more << 20)))
                    break
            with Caller(61001, "deaf", agent.socket, 15, 250):
                until("its end", agent.ended, 90)
            check("oom_kill 0" not in events.read_text().splitlines(), f"it ended for another reason: {agent.last_words()}")
            died = time.monotonic()
            # With the flood gone it has what it needs again.
            limit.write_text(str(anonymous + (64 << 20)))
            agent.start(group=memory)
            load.gives(50)
            seconds = time.monotonic() - died
        load.only(*GONE, "late")
        check(not agent.panicked(), agent.panicked())
        given = nothing_is_lost(agent, load.given)
    return Seen(
        f"with 12 MiB to spare: served, the slowest after {longest * 1000:.0f} ms; then what they see of kill -9 ({load.seen()})",
        f"nothing ({given} checked)",
        "nothing; the kernel and systemd do",
        f"with the next start, {seconds:.1f} s later: `Restart=` of the unit",
    )
