"""Callers that take what they can: connections, streams, memory, time."""

import socket
import threading
import time

from agent import ENTRIES, Agent, Caller, Seen, check, is_served, until

ONE, ANOTHER = 61001, 61002


def is_another_served(agent):
    with Caller(ANOTHER, "measure", agent.socket, 1) as other:
        return other.says()


def one_user_takes_all_the_connections_it_may(work):
    """One user opens connections until it is refused, and keeps them."""
    agent = Agent(work)
    agent.start()
    before = agent.resident()
    with Caller(ONE, "idle", agent.socket, 100_000) as idle:
        said = idle.says()
        check(said["refused"] and "limit" in said["refused"], f"the refusal does not say what it is: {said}")
        each = (agent.resident() - before) * 1024 / said["held"]
        other = is_another_served(agent)
        check(not other["failed"], f"another user: {other}")
        left = idle.goes()
        check(left["held"] == said["held"], f"of {said['held']} idle connections {left['held']} are left")
    seconds = until("a place", lambda: is_served_as(agent, ONE))[1]
    check(not agent.panicked(), agent.panicked())
    return Seen(
        f"connection {said['held'] + 1} of this user is refused with the reason; another user: {other['served']} of "
        f"{other['served']} calls a second answered, p99 {other['p99'] * 1000:.0f} ms",
        f"nothing; {each:.0f} KiB for each connection",
        f"{seconds * 1000:.0f} ms after they were closed",
    )


def is_served_as(agent, uid):
    with Caller(uid, "measure", agent.socket, 0.1) as caller:
        return caller.says()["served"]


def connections_that_say_nothing(work):
    """One user opens 500 connections and says nothing on them."""
    agent = Agent(work, '[limits]\nhalf_open = "2s"\n')
    agent.start()
    open_before = agent.descriptors()
    with Caller(ONE, "half_open", agent.socket, 500) as silent:
        check(silent.says()["held"] == 500, "they cannot connect")
        other = is_another_served(agent)
        check(not other["failed"], f"another user: {other}")
        after = silent.says()["closed_after"]
        check(1.5 < after < 10, f"closed after {after} s")
        until("the descriptors", lambda: agent.descriptors() <= open_before + 8)
    return Seen(
        f"they are closed after `limits.half_open` (2 s here: {after:.1f} s); another user is served, p99 {other['p99'] * 1000:.0f} ms",
        "nothing",
        "by itself: all descriptors are free again",
    )


def streams_that_nobody_reads(work):
    """One user opens as many streams as it may and reads none, while its SVIDs change 20 times."""
    entry = ENTRIES.replace("user-61001\"\n", 'user-61001"\ndns_names = ["n0.example.org"]\n')
    agent = Agent(work, entries=entry)
    agent.start()
    before, peaks = agent.resident(), {}
    for what in ("deaf", "stuck"):
        with Caller(ONE, what, agent.socket, 8, 250) as caller:
            count = caller.says()["opened"]
            status = lambda: agent.status()["calls"]
            until("the streams", lambda: status() >= count * 0.95)
            begin, sizes = agent.resident(), []
            for number in range(20):
                file = agent.entries / ".new"
                file.write_text(entry.replace("n0", f"n{number + 1}"))
                generation = agent.status()["entries"]["generation"]
                file.rename(agent.entries / "callers.toml")
                until("the entries", lambda: agent.status()["entries"]["generation"] > generation)
                sizes.append(agent.resident())
            other = is_another_served(agent)
            check(not other["failed"], f"another user: {other}")
            growth = (max(sizes[10:]) - max(sizes[:10])) * 1024 / count
            check(growth < 4, f"{growth:.1f} KiB more for each stream over the last ten of twenty changes")
            peaks[what] = ((max(sizes) - before) * 1024 / count, begin, max(sizes))
        until("the end of the streams", lambda: status() <= 2)
    after = agent.resident()
    each = max(peak[0] for peak in peaks.values())
    check(each < 64, f"{each:.0f} KiB for each stream")
    return Seen(
        f"nothing: another user is served meanwhile, p99 {other['p99'] * 1000:.0f} ms",
        f"nothing; at most {each:.0f} KiB for each of {count} streams, however many changes are not read "
        f"({before:.0f} MiB resident before, {max(p[2] for p in peaks.values()):.0f} at most)",
        f"by itself ({after:.0f} MiB after)",
    )


def bystander(path, end):
    """A server that does nothing for those who touch it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(4096)
    listener.settimeout(0.1)
    while not end.is_set():
        try:
            one = listener.accept()[0]
        except TimeoutError:
            continue
        with one:
            one.settimeout(1)
            try:
                one.recv(1000)
                one.sendall(b"x" * 1500)
            except OSError:
                pass
    listener.close()


def a_storm_of_callers(work, seconds=10, processes=200):
    """A fork bomb of one user: hundreds of processes that fork without end; each child connects and asks for a token."""
    agent = Agent(work)
    agent.start()
    # The same load on the host, but on another socket: what is left of it is what the agent could not help.
    end, path = threading.Event(), agent.run / "bystander"
    thread = threading.Thread(target=bystander, args=[path, end], daemon=True)
    thread.start()
    figures = {}
    for what, target in (("quiet", None), ("touch", path), ("ask", agent.socket)):
        with Caller(ANOTHER, "measure", agent.socket, seconds) as other:
            if target is None:
                figures[what] = other.says(), None
            else:
                with Caller(ONE, "storm", target, seconds, processes, what) as storm:
                    figures[what] = other.says(), storm.says()["calls"]
    end.set()
    thread.join()
    (quiet, _), (host, touched), (served, calls) = figures["quiet"], figures["touch"], figures["ask"]
    check(not served["failed"], f"the other user was refused: {served['failed']}")
    check(calls.get("served", 0) > 0, f"nobody of the storm was served: {calls}")
    until("quiet", lambda: agent.status()["connections"] <= 2)
    check(is_served(agent), "nobody is served after the storm")
    check(not agent.panicked(), agent.panicked())
    ms = lambda seconds: f"{seconds * 1000:.0f}"
    ratio = lambda of, at: f"{served[at] / of[at]:.1f}"
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(calls.items()))
    return Seen(
        f"the storm of {processes} processes, {seconds} s: {shown}. The other user: {served['served']} calls, no failure, p50/p99 {ms(served['p50'])}/{ms(served['p99'])} ms; "
        f"alone {ms(quiet['p50'])}/{ms(quiet['p99'])} ms; with the same storm on another program's socket "
        f"{ms(host['p50'])}/{ms(host['p99'])} ms. Fairness (with it / the host under the same load): "
        f"p50 {ratio(host, 'p50')}, p99 {ratio(host, 'p99')}; (with it / alone): p50 {ratio(quiet, 'p50')}, p99 {ratio(quiet, 'p99')}",
        "nothing",
        "by itself",
    )
