"""Somebody who needs the agent all the time."""

import threading
import time

from booted import check, until

FETCH = ["tether", "fetch", "x509", "--output", "json"]


class Calls(threading.Thread):
    """Somebody who calls all the time, and how long each call took until it was answered: with another try where it was not."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.end, self.longest, self.answered, self.failed = host, threading.Event(), 0.0, 0, []

    def run(self):
        while not self.end.is_set():
            started = time.monotonic()
            while (done := self.host.run(*FETCH)).returncode != 0 and not self.end.is_set():
                self.failed.append(f"{done.returncode}: {done.stderr.strip()}")
                time.sleep(0.1)
            self.longest = max(self.longest, time.monotonic() - started)
            self.answered += 1

    def __enter__(self):
        self.start()
        until("the first call", lambda: self.answered)
        return self

    def __exit__(self, *_):
        self.end.set()
        self.join()

    def went_on(self, within):
        answered = self.answered
        until("calls afterwards", lambda: self.answered > answered + 1)
        check(self.longest < within, f"one call was answered after {self.longest:.1f} s only: {self.failed[-3:]}")
