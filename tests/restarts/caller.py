"""Calls the Workload API without a SPIFFE library and without a retry: what it sees is what the agent did.

usage: caller.py AUDIENCE

For each line of its input, one call; answered by one line of JSON, `{"asked":LINE,"ids":[..]}` with the serial number or jti of what it
got, or `{"asked":LINE,"error":CODE,"details":TEXT}`. It alternates between a connection of its own for each call and one that it
keeps, and between FetchX509SVID and FetchJWTSVID.
"""

import base64
import itertools
import json
import os
import sys

import grpc
from cryptography.x509 import load_der_x509_certificate
from spiffe._proto import workload_pb2, workload_pb2_grpc

METADATA = [("workload.spiffe.io", "true")]
# Not the connection of another channel of this process.
OWN = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


def x509(stub, _audience):
    stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA, timeout=30)
    first = next(iter(stream))
    stream.cancel()
    return [first_certificate(svid.x509_svid) for svid in first.svids]


def first_certificate(chain):
    # A DER sequence of up to 64 KiB: two octets of length.
    return format(load_der_x509_certificate(chain[: 4 + int.from_bytes(chain[2:4], "big")]).serial_number, "x")


def jwt(stub, audience):
    request = workload_pb2.JWTSVIDRequest(audience=[audience])
    answer = stub.FetchJWTSVID(request, metadata=METADATA, timeout=30)
    return [jti(svid.svid) for svid in answer.svids]


def jti(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["jti"]


def main(audience):
    address = os.environ["SPIFFE_ENDPOINT_SOCKET"]
    kept = grpc.insecure_channel(address, options=OWN)
    turns = itertools.cycle(itertools.product([True, False], [x509, jwt]))
    for line, (is_kept, call) in zip(sys.stdin, turns):
        answer = {"asked": line.rstrip("\n")}
        channel = kept if is_kept else grpc.insecure_channel(address, options=OWN)
        try:
            answer["ids"] = call(workload_pb2_grpc.SpiffeWorkloadAPIStub(channel), audience)
        except grpc.RpcError as error:
            answer |= {"error": error.code().name, "details": error.details()}
        if not is_kept:
            channel.close()
        print(json.dumps(answer), flush=True)


main(sys.argv[1])
