#!/usr/bin/env python3
"""A caller of a user of its own, started by the faults: what it does is its first argument.

It prints one JSON object a line, and goes on until its standard input ends.
"""

import json
import os
import select
import socket
import sys
import time

import wire


def say(**what):
    print(json.dumps(what), flush=True)


def stay():
    sys.stdin.read()


def idle(path, count):
    """Connects up to `count` times, is served on each connection, and keeps it."""
    held = []
    try:
        for _ in range(int(count)):
            connection = wire.Connection(path, patience=30)
            connection.call("FetchX509Bundles")
            held.append(connection)
        say(held=len(held), refused=None)
    except wire.Failed as failed:
        say(held=len(held), refused=str(failed))
    stay()
    say(held=sum(alive(connection) for connection in held))


def alive(connection):
    try:
        connection.call("FetchX509Bundles")
    except wire.Failed:
        return False
    return True


def token(path):
    """Is given a token, which ends with this process."""
    say(id=wire.fetch_jwt(path)["jti"])
    stay()


def half_open(path, count):
    """Connects `count` times, says nothing, and waits until each connection is closed."""
    held, begin = [], time.monotonic()
    for _ in range(int(count)):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        held.append(one)
    say(held=len(held))
    for one in held:
        one.settimeout(60)
        while one.recv(65536):
            pass
    say(closed_after=time.monotonic() - begin)
    stay()


def deaf(path, connections, streams):
    """Opens streams and lets nothing of them come."""
    held, opened = [], 0
    try:
        for _ in range(int(connections)):
            connection = wire.Connection(path, window=0)
            held.append(connection)
            # Shown who we are, as the agent wants before it begins to work.
            connection.read_frame(time.monotonic() + 20)
            for _ in range(int(streams)):
                connection.open("FetchX509SVID")
                opened += 1
            # Whatever the protocol itself says is read, and no message can come.
            drain(connection)
        say(opened=opened, gone=None)
    except wire.Failed as gone:
        say(opened=opened, gone=str(gone))
    end = False
    while not end:
        end = bool(select.select([sys.stdin], [], [], 0.05)[0])
        for connection in held:
            drain(connection)


def drain(connection):
    while select.select([connection.socket], [], [], 0)[0]:
        try:
            connection.incoming += connection.socket.recv(65536) or b""
            while connection.take_frame():
                pass
        except OSError:
            return


def stuck(path, connections, streams):
    """Opens streams with all the room there is, and then never reads a byte from the socket."""
    held = []
    for _ in range(int(connections)):
        connection = wire.Connection(path, window=1 << 20)
        connection.read_frame(time.monotonic() + 20)
        for _ in range(int(streams)):
            connection.open("FetchX509SVID")
        held.append(connection)
    say(opened=int(connections) * int(streams))
    stay()


def ask(path):
    try:
        wire.fetch_jwt(path, patience=10)
        return "served"
    except wire.Failed as failed:
        return failed.kind


def touch(path):
    """As much work for this host as a call, and none for the agent."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        one.sendall(b"x" * 300)
        one.recv(2000)
    return "touched"


def storm(path, seconds, processes, what="ask"):
    """Hundreds of processes, each of which forks as fast as it can; each child connects and asks once."""
    act, until, workers = {"ask": ask, "touch": touch}[what], time.monotonic() + float(seconds), []
    for _ in range(int(processes)):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(out)
            counts = {}
            while time.monotonic() < until:
                child = os.fork()
                if child == 0:
                    kind = "failed"
                    try:
                        kind = act(path)
                    except OSError:
                        pass
                    os._exit(KINDS.index(kind) if kind in KINDS else 99)
                kind = KINDS[min(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(KINDS) - 1)]
                counts[kind] = counts.get(kind, 0) + 1
            os.write(into, json.dumps(counts).encode())
            os._exit(0)
        os.close(into)
        workers.append((pid, out))
    say(begun=len(workers))
    total = {}
    for pid, out in workers:
        text = b""
        while part := os.read(out, 4096):
            text += part
        os.close(out)
        os.waitpid(pid, 0)
        for kind, count in json.loads(text or b"{}").items():
            total[kind] = total.get(kind, 0) + count
    say(calls=total)
    stay()


def flood(path, seconds, connections, at_once=250):
    """Asks for tokens without waiting for any: as much as one user's few processes can keep the agent busy with."""
    until, answered = time.monotonic() + float(seconds), 0
    held = [wire.Connection(path) for _ in range(int(connections))]
    for connection in held:
        connection.call("FetchX509Bundles")
        connection.busy = 0
    say(begun=len(held))
    while time.monotonic() < until:
        for connection in held:
            if connection.busy == 0:
                connection.busy = int(at_once)
                connection.socket.sendall(b"".join(requests(connection, int(at_once))))
        for one in select.select([connection.socket for connection in held], [], [], 0.1)[0]:
            connection = next(connection for connection in held if connection.socket is one)
            connection.incoming += one.recv(1 << 20)
            ended = ends(connection)
            connection.busy -= ended
            answered += ended
    say(calls={"answered": answered})
    stay()


def requests(connection, count):
    """The bytes of so many calls."""
    for _ in range(count):
        number, connection.next_number = connection.next_number, connection.next_number + 2
        yield wire.request(number, "FetchJWTSVID", wire.field(1, "demo"))


def ends(connection):
    """How many calls ended by what has come. Nothing else of it is looked at."""
    data, at, ended = connection.incoming, 0, 0
    while len(data) - at >= 9:
        length = int.from_bytes(data[at : at + 3], "big")
        if len(data) - at < 9 + length:
            break
        ended += data[at + 3] == wire.HEADERS and data[at + 4] & wire.END_STREAM
        at += 9 + length
    connection.incoming = data[at:]
    return ended


KINDS = ["served", "touched", "goaway", "reset", "refused", "late", *wire.STATUSES, "other"]


def measure(path, seconds):
    """One call after the other, each on a new connection: how long each took."""
    until, took, failed = time.monotonic() + float(seconds), [], {}
    while time.monotonic() < until:
        begin = time.monotonic()
        kind = ask(path)
        if kind == "served":
            took.append(time.monotonic() - begin)
        else:
            failed[kind] = failed.get(kind, 0) + 1
    took.sort()
    at = lambda part: took[min(len(took) - 1, int(len(took) * part))] if took else None
    say(served=len(took), failed=failed, p50=at(0.5), p99=at(0.99))
    stay()


def paced(path, seconds, every=0.02):
    """A call every 20 ms, each on a new connection. What is late because the one before it was slow counts as slow too."""
    begin, took, failed = time.monotonic(), [], {}
    for number in range(int(float(seconds) / every)):
        due = begin + number * every
        time.sleep(max(0.0, due - time.monotonic()))
        kind = ask(path)
        if kind == "served":
            took.append(time.monotonic() - due)
        else:
            failed[kind] = failed.get(kind, 0) + 1
        if time.monotonic() > begin + 3 * float(seconds):
            break
    took.sort()
    at = lambda part: took[min(len(took) - 1, int(len(took) * part))] if took else None
    say(served=len(took), failed=failed, p50=at(0.5), p99=at(0.99))
    stay()


def inotify(count):
    """Takes all the inotify instances of this user."""
    import ctypes

    init, held = ctypes.CDLL(None).inotify_init1, 0
    while held < int(count) and init(0) >= 0:
        held += 1
    say(held=held)
    stay()


{one.__name__: one for one in (idle, token, half_open, deaf, stuck, storm, flood, measure, paced, inotify)}[sys.argv[1]](*sys.argv[2:])
