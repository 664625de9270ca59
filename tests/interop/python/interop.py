"""Drives the PyPI packages `spiffe` and `spiffe-tls` against a Workload API socket.

See ../README.md for the command line all languages share.
"""

import json
import queue
import sys
import threading

from OpenSSL import SSL
from spiffe import JwtSource, JwtSvid, SpiffeId, WorkloadApiClient, X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.tlsconfig.authorize import authorize_id

USAGE = "usage: fetch AUDIENCE | watch N | sources AUDIENCE | validate AUDIENCE TOKEN | mtls-server ADDR ID | mtls-client ADDR ID [--hold]"


def main(args):
    match args:
        case ["fetch", audience]:
            fetch(audience)
        case ["watch", updates]:
            watch(int(updates))
        case ["sources", audience]:
            sources(audience)
        case ["validate", audience, token]:
            validate(audience, token)
        case ["mtls-server", addr, client_id]:
            mtls_server(addr, SpiffeId(client_id))
        case ["mtls-client", addr, server_id]:
            mtls_client(addr, SpiffeId(server_id), ["hello"])
        case ["mtls-client", addr, server_id, "--hold"]:
            mtls_client(addr, SpiffeId(server_id), (line.rstrip("\n") for line in sys.stdin), show_updates=True)
        case _:
            sys.exit(USAGE)


def fetch(audience):
    with WorkloadApiClient() as client:
        context = client.fetch_x509_context()
        bundles = client.fetch_x509_bundles()
        own = pick(context.x509_svids)
        token = client.fetch_jwt_svid({audience}, own.spiffe_id)
        jwt_bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(own.spiffe_id.trust_domain)
        verified = JwtSvid.parse_and_validate(token.token, jwt_bundle, {audience})
        print_line(
            spiffe_ids=[str(svid.spiffe_id) for svid in context.x509_svids],
            trust_domains=[bundle.trust_domain.name for bundle in bundles.bundles],
            jwt_sub=str(verified.spiffe_id),
        )


def watch(updates):
    with open_source() as source:
        changes = queue.SimpleQueue()
        source.subscribe_for_updates(lambda: changes.put(None))
        print_svid(source)
        for _ in range(updates - 1):
            changes.get()
            print_svid(source)


def sources(audience):
    """Keeps an X.509 source and a JWT source open, and fetches a token for each line of its input."""
    with open_source() as source, JwtSource() as tokens:
        show_updates_of(source)
        for line in sys.stdin:
            asked = line.rstrip("\n")
            try:
                svid = source.get_x509_context().default_svid
                token = tokens.fetch_svid(audience={audience}, subject=svid.spiffe_id)
                print_line(asked=asked, current=format(svid.leaf.serial_number, "x"), token=token.token)
            except Exception as error:  # which one, is for the reader to judge
                print_line(asked=asked, error=f"{type(error).__name__}: {error}")


def validate(audience, token):
    with WorkloadApiClient() as client:
        print_line(spiffe_id=str(client.validate_jwt_svid(token, audience).spiffe_id))


def mtls_server(addr, client_id):
    with open_source() as source:
        listener = listen(addr, source, ListenOptions(authorize_fn=authorize_id(client_id)))
        host, port = listener.getsockname()
        print_line(listening=f"{host}:{port}")
        show_updates_of(source)
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=serve, args=(conn, client_id), daemon=True).start()


def serve(conn, client_id):
    """Answers every line with the client's SPIFFE ID, which `authorize_id` has verified, and the line."""
    try:
        conn.do_handshake()
    except SSL.Error as error:
        print_line(refused=str(error))
        return
    for line in lines(conn):
        conn.sendall(f"{client_id} {line}\n".encode())


def mtls_client(addr, server_id, messages, show_updates=False):
    with open_source() as source:
        conn = dial(addr, source, authorize_fn=authorize_id(server_id))
        if show_updates:
            show_updates_of(source)
        answers = lines(conn)
        for message in messages:
            conn.sendall(f"{message}\n".encode())
            echo = next(answers, None)
            if echo is None:
                sys.exit("the server closed the connection")
            print_line(peer=str(server_id), echo=echo)
        conn.shutdown()


def lines(conn):
    """The lines that arrive until the peer closes."""
    buffer = b""
    while True:
        try:
            buffer += conn.recv(4096)
        except SSL.ZeroReturnError:
            return
        *complete, buffer = buffer.split(b"\n")
        yield from (line.decode() for line in complete)


def open_source():
    return X509Source(svid_picker=pick)


def pick(svids):
    """The SVID meant for these tests, by its path: this client drops the hint."""
    return next(svid for svid in svids if svid.spiffe_id.path == "/interop/python")


def show_updates_of(source):
    source.subscribe_for_updates(lambda: print_svid(source))
    print_svid(source)


def print_svid(source):
    svid = source.get_x509_context().default_svid
    print_line(serial=format(svid.leaf.serial_number, "x"), spiffe_id=str(svid.spiffe_id))


def print_line(**fields):
    """One line of JSON in one write, so that lines of several threads never mix."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
