"""Callers that take what they can: connections, streams, memory, time."""

import contextlib
import socket
import threading
import time

from agent import ENTRIES, Agent, Caller, Seen, Stream, check, entries_of, group, is_served, until

ONE, ANOTHER, THIRD = 61001, 61002, 61003


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
        f"connection {said['held'] + 1} of this user is refused; another user: {other['served']} of "
        f"{other['served']} calls a second answered, p99 {other['p99'] * 1000:.1f} ms",
        f"nothing; {each:.0f} KiB for each connection",
        f"to the caller: {said['refused'].removeprefix('goaway: ')}",
        f"{seconds * 1000:.0f} ms after they were closed",
    )


def users_take_all_the_connections_there_are(work):
    """Three users together open all the connections there may be, and keep them."""
    entries = entries_of(0, ONE, ANOTHER, THIRD)
    agent = Agent(work, "[limits]\nconnections = 300\nconnections_per_uid = 120\n", entries)
    agent.start()
    with Stream(agent) as stream, contextlib.ExitStack() as all_of_them:
        users = [all_of_them.enter_context(Caller(uid, "idle", agent.socket, 1000)) for uid in (ONE, ANOTHER, THIRD)]
        said = [user.says() for user in users]
        held = [one["held"] for one in said]
        check(sum(held) == 299 and max(held) <= 120, f"300 in all, one of them root's, and 120 of each: {held}")
        refused = [one["refused"] for one in said if "connections_per_uid" not in one["refused"]]
        check(refused and "raise `connections` in" in refused[0], f"the refusals do not say which limit it is: {said}")
        check(is_served(agent) is None, "one connection more than there may be")
        # What is open goes on, and the operator has a socket of its own.
        (agent.entries / "callers.toml").write_text(entries.replace('user-0"\n', 'user-0"\ndns_names = ["new.example.org"]\n'))
        check(stream.next()[1] != stream.first[1], "an open stream brings nothing")
        status = agent.status()
        check(status["connections"] >= 300, f"`tether status` does not show it: {status['connections']}")
        left = [user.goes()["held"] for user in users]
        check(left == held, f"of {held} idle connections {left} are left")
    seconds = until("a place", lambda: is_served(agent))[1]
    check(not agent.panicked(), agent.panicked())
    return Seen(
        f"{held[0]}, {held[1]} and {held[2]} connections are held; the next caller of any user is refused. Open streams bring new SVIDs, the admin "
        "socket answers",
        "nothing",
        f"to the caller: {refused[0].removeprefix('goaway: ')}; `tether status` and `tether_workload_connections` against its limit",
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
        f"they are closed after `limits.half_open` (2 s here: {after:.1f} s); another user is served, p99 {other['p99'] * 1000:.1f} ms",
        "nothing",
        agent.line("challenge_timeout").partition("detail=")[2].strip('"'),
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
        f"nothing: another user is served meanwhile, p99 {other['p99'] * 1000:.1f} ms",
        f"nothing; at most {each:.0f} KiB for each of {count} streams, however many changes are not read "
        f"({before:.0f} MiB resident before, {max(p[2] for p in peaks.values()):.0f} at most)",
        "nothing: slow readers are no fault; `tether status --watch` counts their streams",
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
    # The same load on the host, but on another socket: what is left of it is what the agent could not help.
    end, path = threading.Event(), agent.run / "bystander"
    thread = threading.Thread(target=bystander, args=[path, end], daemon=True)
    figures, calls = {}, {}
    with contextlib.ExitStack() as last:
        # As systemd has it: the agent and each user have an equal share of the processors, however many processes they are.
        ours, one, another = (last.enter_context(group(name, "cpu")) for name in ("agent", "one", "another"))
        last.callback(agent.kill)
        agent.start(group=ours)
        thread.start()

        def measure(what, target=None, kind="ask"):
            if target is None:
                figures[what] = paced(agent, seconds, another)
                return
            with Caller(ONE, "storm", target, seconds + 1, processes, kind, group=one) as storm:
                storm.says()
                figures[what], calls[what] = paced(agent, seconds, another), storm.says()["calls"]

        measure("alone")
        measure("host", path, "touch")
        measure("served", agent.socket)
        until("quiet", lambda: agent.status()["connections"] <= 2)
        # As nobody should have it: all in one group, where each process has as much as the agent.
        (one / "cgroup.procs").write_text(str(agent.pid()))
        another = one
        measure("together", agent.socket)
        end.set()
        thread.join()
        for what in ("served", "together"):
            check(not figures[what]["failed"], f"the other user was refused: {figures[what]['failed']}")
            check(calls[what].get("served", 0) > 0, f"nobody of the storm was served: {calls[what]}")
        until("quiet", lambda: agent.status()["connections"] <= 2)
        check(is_served(agent), "nobody is served after the storm")
        check(not agent.panicked(), agent.panicked())
    is_fair(figures["alone"], figures["served"])
    storm = ", ".join(f"{count} {kind}" for kind, count in sorted(calls["served"].items()))
    return Seen(
        f"the storm ({processes} processes, {seconds} s): {storm}. The other user: {figures['served']['served']} calls, no failure, "
        f"p50/p99 {shown(figures['served'])}; alone {shown(figures['alone'])}: times {ratio(figures['served'], figures['alone'])}. With the same storm on another "
        f"program's socket {shown(figures['host'])}. With agent, storm and user in one control group {shown(figures['together'])}",
        "nothing",
        "nothing",
        "by itself",
    )


def a_flood_of_calls(work, seconds=10):
    """One user keeps nearly all the calls in progress that it may have, 4000, and asks for a token anew with each answer."""
    agent, figures = Agent(work), {}
    with contextlib.ExitStack() as last:
        ours, one, another = (last.enter_context(group(name, "cpu")) for name in ("agent", "one", "another"))
        last.callback(agent.kill)
        agent.start(group=ours)
        figures["alone"] = paced(agent, seconds, another)
        with Caller(ONE, "flood", agent.socket, seconds + 1, 16, 250, group=one) as flood:
            flood.says()
            figures["served"], answered = paced(agent, seconds, another), flood.says()["calls"]["answered"]
        check(not figures["served"]["failed"], f"the other user was refused: {figures['served']['failed']}")
        check(answered > 100 * seconds, f"the flood had {answered} answers")
        until("quiet", lambda: agent.status()["calls"] <= 2)
        check(not agent.panicked(), agent.panicked())
    is_fair(figures["alone"], figures["served"])
    return Seen(
        f"the flood: {answered // (seconds + 1)} tokens a second. The other user: {figures['served']['served']} calls, "
        f"no failure, p50/p99 {shown(figures['served'])}; alone {shown(figures['alone'])}: times {ratio(figures['served'], figures['alone'])}",
        "nothing",
        "nothing",
        "by itself",
    )


def paced(agent, seconds, group):
    """How another user is served, who calls at an even pace."""
    with Caller(ANOTHER, "paced", agent.socket, seconds, group=group) as other:
        return other.says()


def shown(figures):
    return "/".join(f"{figures[at] * 1000:.2f}" for at in ("p50", "p99")) + " ms"


def ratio(of, to):
    return " and ".join(f"{of[at] / to[at]:.1f}" for at in ("p50", "p99"))


def is_fair(alone, served):
    """Wide bounds: there are machines of all kinds. Without shares of its own the agent is far beyond them."""
    check(served["p50"] < max(10 * alone["p50"], 0.05), f"p50 {served['p50']:.4f} s in the storm, {alone['p50']:.4f} s alone")
    check(served["p99"] < max(50 * alone["p99"], 1.0), f"p99 {served['p99']:.4f} s in the storm, {alone['p99']:.4f} s alone")
