"""What a Python program asks of a tether agent: the headers that prove a request, and whether those of a caller are good.

The agent is the one that SPIFFE_ENDPOINT_SOCKET names. There is no key and no token in here: the agent knows who calls by
the socket. The gRPC stubs are made from proto/session.proto when this is imported; to make them once and for all:

    python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. session.proto
"""

import hashlib
import json
import os
import pathlib
import sys

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
wire, services = grpc.protos_and_services("session.proto")

# Every call to a Workload Endpoint carries this.
METADATA = (("workload.spiffe.io", "true"),)
SECONDS = 10
# The headers of a request that carry identity.
IDENTITY = ("workload-identity-token", "authorization", "txn-token")


class Refused(Exception):
    """The agent did not prove a request."""

    def __init__(self, error):
        metadata = dict(error.trailing_metadata() or ())
        self.approval = metadata.get("tether-approval")
        self.ended = metadata.get("tether-session-end")
        self.denial = metadata.get("tether-denial")
        super().__init__(error.details())


class Agent:
    """A connection to the agent of this host."""

    def __init__(self, endpoint=None):
        channel = grpc.insecure_channel(endpoint or os.environ["SPIFFE_ENDPOINT_SOCKET"])
        self.sessions = services.SessionsStub(channel)
        self.verifier = services.VerifierStub(channel)

    def prove(self, method, uri, body=b"", tool="", arguments=None):
        """For an agent: the headers for one request, in the session of TETHER_SESSION, or the one this process is in."""
        request = wire.ProveRequest(
            method=method,
            uri=uri,
            body_sha256=sha256(body),
            tool=tool,
            arguments_sha256=b"" if arguments is None else digest(arguments),
            session=os.environ.get("TETHER_SESSION", ""),
        )
        try:
            answer = self.sessions.Prove(request, metadata=METADATA, timeout=SECONDS)
        except grpc.RpcError as error:
            raise Refused(error) from None
        return dict(answer.headers)

    def check(self, method, uri, headers, body=b"", tool="", arguments=None):
        """For a tool: a CheckResponse; `active` says whether to serve the request.

        `headers` are (name, value) pairs. `uri` is where this tool is, by its own configuration: never the Host header.
        """
        identity = [(name.lower(), value) for name, value in headers if name.lower() in IDENTITY]
        if len(dict(identity)) != len(identity):
            return wire.CheckResponse(active=False, reason="no_proof")  # one of them is there twice
        request = wire.CheckRequest(
            method=method,
            uri=uri,
            headers=dict(identity),
            body_sha256=sha256(body),
            tool=tool,
            arguments_sha256=b"" if arguments is None else digest(arguments),
            require_session=True,
            min_binding=2,
        )
        return self.verifier.Check(request, metadata=METADATA, timeout=SECONDS)

    def report(self, checked, done):
        """For a tool: what became of a call, for the audit log."""
        outcome = wire.ReportRequest.DONE if done else wire.ReportRequest.FAILED
        request = wire.ReportRequest(session=checked.session, txn=checked.txn, outcome=outcome)
        self.verifier.Report(request, metadata=METADATA, timeout=SECONDS)


def sha256(data):
    return hashlib.sha256(data).digest()


def digest(arguments):
    """SHA-256 of a tool's arguments, in the one form in which both sides write them."""
    return sha256(json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def mcp_call(body):
    """The tool that an MCP message calls, and its arguments; neither for any other message."""
    try:
        message = json.loads(body)
    except ValueError:
        return "", None
    if not isinstance(message, dict) or message.get("method") != "tools/call":
        return "", None
    params = message.get("params")
    return (params.get("name", ""), params.get("arguments") or {}) if isinstance(params, dict) else ("", None)
