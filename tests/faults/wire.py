"""A gRPC client on one Unix socket, in which the test decides what is read and when: the standard library has none.

Calls raise `Failed`, whose `kind` says how: the name of a gRPC status, or `reset`, `refused`, `late` where there was none.
"""

import base64
import json
import socket
import struct
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WORKLOAD = "/SpiffeWorkloadAPI/"
STATUSES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
    "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED"
).split()

# How a call fails when its connection is of no use any more.
BROKEN = ("goaway", "late", "refused", "reset")


class Failed(Exception):
    """A call that came to nothing."""

    def __init__(self, kind, text=""):
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind, self.text = kind, text


# --- HPACK (RFC 7541), as much as answers need -----------------------------------------------------------------------------

STATIC = """:authority :method :method :path :path :scheme :scheme :status=200 :status=204 :status=206 :status=304 :status=400
:status=404 :status=500 accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age
allow authorization cache-control content-disposition content-encoding content-language content-length content-location
content-range content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range
if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range referer refresh
retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate""".split()

# How many bits the code of each character has, from the space on (appendix B). The codes follow from these: they are in the
# order of length, then of the character.
BITS = [int(bits) for bits in (
    "6 10 10 12 13 6 8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 "
    "7 8 7 8 13 19 13 14 6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13"
).split()]


def codes():
    by_length = sorted((bits, 32 + index) for index, bits in enumerate(BITS) if bits <= 15)
    by_length.append((13, 0))
    by_length.sort()
    table, code, before = {}, 0, by_length[0][0]
    for bits, character in by_length:
        code <<= bits - before
        table[(bits, code)] = chr(character)
        code, before = code + 1, bits
    return table


CODES = codes()


def unhuffman(data):
    text, code, bits = [], 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            if (found := CODES.get((bits, code))) is not None:
                text.append(found)
                code, bits = 0, 0
            elif bits > 30:
                return "".join(text) + "…"  # a character outside ASCII
    return "".join(text)


class Headers:
    """Decodes the header blocks of one connection."""

    def __init__(self):
        self.dynamic = []

    def number(self, prefix):
        limit = (1 << prefix) - 1
        value, self.at = self.block[self.at] & limit, self.at + 1
        shift = 0
        while value >= limit:
            byte, self.at = self.block[self.at], self.at + 1
            value, shift = value + ((byte & 127) << shift), shift + 7
            if not byte & 128:
                break
        return value

    def text(self):
        coded = self.block[self.at] & 128
        length = self.number(7)
        data, self.at = self.block[self.at : self.at + length], self.at + length
        return unhuffman(data) if coded else data.decode("latin-1")

    def entry(self, index):
        if index <= len(STATIC):
            name, _, value = STATIC[index - 1].partition("=")
            return name, value
        return self.dynamic[index - len(STATIC) - 1]

    def decode(self, block):
        self.block, self.at, found = block, 0, {}
        while self.at < len(block):
            first = block[self.at]
            if first & 128:
                name, value = self.entry(self.number(7))
            elif first & 0xE0 == 0x20:
                self.number(5)
                continue
            else:
                keep = first & 64
                index = self.number(6 if keep else 4)
                name = self.entry(index)[0] if index else self.text()
                value = self.text()
                if keep:
                    self.dynamic.insert(0, (name, value))
            found[name] = value
        return found


def literal(name, value):
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


# --- one connection --------------------------------------------------------------------------------------------------------


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def request(number, method, message=b""):
    """All of a call that the client sends."""
    path = method if method.startswith("/") else WORKLOAD + method
    fields = [("te", "trailers"), ("content-type", "application/grpc"), ("workload.spiffe.io", "true")]
    block = b"\x83\x86" + literal(":path", path) + literal(":authority", "localhost")
    block += b"".join(literal(name, value) for name, value in fields)
    body = b"\0" + struct.pack("!I", len(message)) + message
    return frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, body)


class Stream:
    """One call: the messages that came and were not taken, and how it ended."""

    def __init__(self, number):
        self.number, self.buffer, self.messages, self.headers, self.ended = number, b"", [], {}, False

    def feed(self, data):
        self.buffer += data
        while len(self.buffer) >= 5 and len(self.buffer) >= 5 + (length := struct.unpack("!I", self.buffer[1:5])[0]):
            self.messages.append(self.buffer[5 : 5 + length])
            self.buffer = self.buffer[5 + length :]


class Connection:
    """A connection that is read only when somebody waits for an answer. With `window` 0 the server may send no message."""

    def __init__(self, path, patience=20, window=1 << 20):
        self.patience, self.headers, self.streams, self.goaway = patience, Headers(), {}, None
        self.incoming, self.next_number = b"", 1
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            self.socket.close()
            raise Failed("refused", error.strerror) from None
        settings = struct.pack("!HIHI", 1, 0, 4, window)  # no table of headers; the window of a stream
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings))
        self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1 << 30)))

    def send(self, data):
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise Failed("late", "nothing can be sent") from None
        except OSError as error:
            # What the server said before it closed is still there to be read.
            self.read_the_rest()
            raise self.lost(error.strerror) from None

    def read_the_rest(self):
        try:
            while data := self.socket.recv(65536):
                self.incoming += data
        except OSError:
            pass
        while len(self.incoming) >= 9:
            if not self.take_frame():
                return

    def lost(self, why):
        return Failed("goaway", self.goaway) if self.goaway is not None else Failed("reset", why)

    def open(self, method, message=b""):
        """Begins a call; nothing is read."""
        stream = self.streams[self.next_number] = Stream(self.next_number)
        self.next_number += 2
        self.send(request(stream.number, method, message))
        return stream

    def next(self, stream, patience=None):
        """The next message of a call; `None` when it ended well."""
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        while not stream.messages:
            if stream.ended:
                status = STATUSES[int(stream.headers.get("grpc-status", 2))]
                if status == "OK":
                    return None
                raise Failed(status, stream.headers.get("grpc-message", "").replace("%20", " ").replace("%60", "`"))
            self.read_frame(deadline)
        return stream.messages.pop(0)

    def call(self, method, message=b""):
        """The only answer, or the first one of a stream, which is left open."""
        answer = self.next(self.open(method, message))
        if answer is None:
            raise Failed("UNKNOWN", "no message")
        return answer

    def read_frame(self, deadline):
        while not self.take_frame():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed("late", "no answer")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise Failed("late", "no answer") from None
            except OSError as error:
                raise self.lost(error.strerror) from None
            if not data:
                raise self.lost("closed")
            self.incoming += data
        self.socket.settimeout(self.patience)

    def take_frame(self):
        if len(self.incoming) < 9:
            return False
        length = struct.unpack("!I", b"\0" + self.incoming[:3])[0]
        if len(self.incoming) < 9 + length:
            return False
        kind, flags, number = struct.unpack("!BBI", self.incoming[3:9])
        payload, self.incoming = self.incoming[9 : 9 + length], self.incoming[9 + length :]
        stream = self.streams.get(number)
        if kind == PING and not flags & ACK:
            self.answer(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self.answer(frame(SETTINGS, ACK, 0))
        elif kind == GOAWAY:
            self.goaway = payload[8:].decode()
        elif kind == RST_STREAM and stream:
            stream.ended, stream.headers = True, {"grpc-status": "1", "grpc-message": "reset by the server"}
        elif kind == HEADERS:
            found = self.headers.decode(payload)
            if stream:
                stream.headers |= found
                stream.ended |= bool(flags & END_STREAM)
        elif kind == DATA and stream:
            stream.feed(payload)
            stream.ended |= bool(flags & END_STREAM)
            if payload:
                self.answer(frame(WINDOW_UPDATE, 0, number, struct.pack("!I", len(payload))))
        return True

    def answer(self, data):
        """Answers of the protocol itself: whether they still arrive shows when something is read."""
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# --- messages --------------------------------------------------------------------------------------------------------------


def fields(message):
    """The fields of a protobuf message that have a length, in order: (number, bytes)."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if not byte & 128:
                return value

    while at < len(message):
        key = number()
        length = number()
        if key & 7 == 2:
            yield key >> 3, message[at : at + length]
            at += length


def field(number, text):
    length, varint = len(text), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + text.encode()


def der(data):
    """The first element: its tag, its content, and what follows."""
    tag, length, at = data[0], data[1], 2
    if length & 128:
        at = 2 + (length & 127)
        length = int.from_bytes(data[2:at], "big")
    return tag, data[at : at + length], data[at + length :]


def certificate(data):
    """Serial number, beginning and end of the first certificate."""
    body = der(der(data)[1])[1]
    tag, content, rest = der(body)
    if tag == 0xA0:
        _, content, rest = der(rest)
    serial = content.lstrip(b"\0").hex()
    validity = der(der(der(rest)[2])[2])[1]
    _, begin, after = der(validity)
    return serial, begin.decode(), der(after)[1].decode()


def x509_of(answer):
    """What is in an X509SVIDResponse: of each SVID its id, serial number, beginning and end."""
    svids = [dict(fields(svid)) for number, svid in fields(answer) if number == 1]
    return [(svid[1].decode(), *certificate(svid[2])) for svid in svids]


def tokens_of(answer):
    """The tokens in a JWTSVIDResponse."""
    return [dict(fields(svid))[2].decode() for number, svid in fields(answer) if number == 1]


def claims_of(answer):
    """The claims of each of them."""
    return [json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")) for token in tokens_of(answer)]


def is_valid(path, token):
    """What the agent says of a token."""
    with Connection(path) as connection:
        try:
            return bool(connection.call("ValidateJWTSVID", field(1, "demo") + field(2, token)))
        except Failed as failed:
            if failed.kind == "INVALID_ARGUMENT":
                return False
            raise


def fetch_x509(path, **more):
    """One X.509-SVID on a new connection: id, serial number, beginning and end."""
    with Connection(path, **more) as connection:
        return x509_of(connection.call("FetchX509SVID"))[0]


def fetch_jwt(path, **more):
    """One JWT-SVID on a new connection: its claims."""
    with Connection(path, **more) as connection:
        return claims_of(connection.call("FetchJWTSVID", field(1, "demo")))[0]
