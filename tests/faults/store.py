"""A store that is not what was left of it. Beside it is a copy, to which every transaction is synced."""

import os

from agent import AGENT, Agent, Load, Seen, Stream, check, nothing_is_lost
from death import ANOTHER

REBUILT = "the store was built anew from its copy"


class Known:
    """What the store must still know: an entry that was made through the admin API, the node, the authorities."""

    def __init__(self, agent, work):
        self.agent = agent
        self.file = work.parent / f"{work.name}.toml"
        self.create("kept")
        agent.out("authority", "rotate", "--now")
        self.was = self.now()

    def create(self, name):
        self.file.write_text(ANOTHER.format(id=name))
        return self.agent.tool("entry", "create", "--file", self.file)

    def now(self):
        status = self.agent.status()
        return status["node"], sorted(authority["id"] for authority in status["authorities"])

    def is_there(self, what):
        check(self.now() == self.was, f"{what}: another node, or other authorities: {self.now()}, {self.was}")
        check("kept" in self.agent.out("entry", "list"), f"{what}: the entry is gone")
        check(not self.agent.panicked() or "redb" in self.agent.panicked(), f"{what}: {self.agent.panicked()}")


def replace(path, content):
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
        os.chown(path, AGENT, AGENT)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def the_store_is_damaged_before_a_start(work, flips=24):
    """`store.redb` has other bytes, half its length, only zeros, no byte, or is missing, when the agent starts."""
    agent = Agent(work)
    agent.start()
    known = Known(agent, work)
    with Load(agent) as load:
        load.gives(50)
    store, rebuilt = agent.state / "store.redb", 0
    cases = {"truncated": lambda c: c[: len(c) // 2], "zeroed": lambda c: bytes(len(c)), "empty": lambda c: b"", "missing": lambda c: None}
    for number in range(flips):
        cases[f"byte {number} of {flips}"] = lambda c, n=number: flipped(c, (len(c) * n // flips) + 7 * n)
    for what, damage in cases.items():
        agent.kill()
        replace(store, damage(store.read_bytes()))
        agent.log.clear()
        agent.start()
        rebuilt += bool(agent.says(REBUILT))
        if not what.startswith("byte"):
            said = agent.line(REBUILT)
        known.is_there(what)
    said = agent.weaker("damaged")
    check(said, f"`tether status` says nothing of it: {agent.status()['weaker']}")
    given = nothing_is_lost(agent, load.given)
    # And when the copy is damaged too, nothing is guessed.
    agent.kill()
    copy, good = agent.state / "store.copy", store.read_bytes()
    content = copy.read_bytes()
    replace(copy, flipped(content, len(content) // 2))
    replace(store, b"\0" * 4096)
    words = agent.refuses_to_start()
    check("store" in words and "restore" in words, f"with both damaged it does not say what to do: {words}")
    replace(copy, content)
    agent.start()
    known.is_there("with the copy back")
    return Seen(
        f"nothing after the start: {len(cases)} of {len(cases)} damaged stores, {rebuilt} of them built anew from the copy "
        "(a byte of a page that is not in use does no harm)",
        f"nothing: node, authorities, entries, and {given} credentials are what they were",
        f"`tether status`: {said}; with store and copy both damaged, at the start: {words}",
        "at the start; not by itself where both are damaged: `tether restore`",
    )


def the_store_is_damaged_under_a_running_agent(work):
    """`store.redb` is overwritten, truncated or removed under a running agent, which is then killed."""
    agent = Agent(work)
    agent.start()
    known = Known(agent, work)
    store, given, answers = agent.state / "store.redb", 0, []

    def overwritten():
        with open(store, "r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * 65536)

    def truncated():
        os.truncate(store, 4096)

    for what, damage in (("overwritten", overwritten), ("truncated", truncated), ("removed", store.unlink)):
        with Load(agent) as load, Stream(agent) as stream:
            load.gives(50)
            damage()
            created = known.create(f"after-{what}")
            answers.append((f"after-{what}", created.returncode == 0))
            load.gives(50)
            check(stream.is_quiet(), f"{what}: an open stream ended")
        load.only()
        agent.kill()
        agent.log.clear()
        agent.start()
        said = agent.line(REBUILT)
        known.is_there(what)
        listed = agent.out("entry", "list")
        for name, answered in answers:
            check(not answered or name in listed, f"{what}: `{name}` was answered and is gone")
        given += nothing_is_lost(agent, load.given)
    created = sum(answered for _, answered in answers)
    return Seen(
        f"nothing: SVIDs are issued all the while; of {len(answers)} entries an operator created meanwhile {created} were taken, the others refused",
        f"nothing that was answered ({given} credentials checked)",
        f"at the next start: {said}",
        "at the next start, from the copy",
    )
