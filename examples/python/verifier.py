# SPDX-License-Identifier: Apache-2.0
"""An offline verifier of requests that a tether agent proved, written from docs/session-profile.md alone.

    python3 examples/python/verifier.py --vectors docs/session-profile/vectors.json

As a library: keep one `Seen` for all requests, and call `verify` for each. It raises `Refused`, whose label is for the log
and never for whoever sent the request. `§` is a section of that page. What such a verifier cannot know is §11.
"""
import argparse
import base64
import hashlib
import ipaddress
import json
import math
import re
import sys
import threading
from dataclasses import dataclass, fields

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

LIFE = 30  # seconds that a proof lives (§3)
LEEWAY = 10  # seconds that clocks may differ (§4)
LONGEST = 16_384  # bytes of a token (§1)
EFFECTS = ("read", "write", "irreversible")  # from the least to the gravest (§4, step 16)
BOUNDARIES = ("tool_call", "request", "task")
ALGORITHM = "ES256"  # a verifier may take others of §2 too, where the key is of that kind
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


class Refused(Exception):
    """The request is not good. `label` is one of §10; `why` says more."""

    def __init__(self, label, why=""):
        super().__init__(f"{label}: {why}" if why else label)
        self.label = label


@dataclass(frozen=True)
class Request:
    """What came, and what the verifier brings of its own (§4). `uri` is never made from a header."""
    headers: list  # pairs of name and value, each as often as it was sent
    method: str
    uri: str
    body_sha256: str | None = None  # given: the proof has to cover the body
    tool: str | None = None
    arguments_sha256: str | None = None
    effect: str | None = None
    scopes: tuple = ()
    min_binding: int = 0
    require_session: bool = False


@dataclass(frozen=True)
class Verified:
    """Who makes the request. Authorise by `spiffe_id` and `user`; never by `subject` alone (§4)."""
    spiffe_id: str
    binding: float
    thumbprint: str
    session: str | None = None
    subject: str | None = None
    user: tuple | None = None  # (iss, sub): without it there is no user, whatever `subject` looks like
    actors: tuple = ()  # who acts: the agent that calls, then those that delegated, the nearest first
    scopes: tuple = ()
    effect: str | None = None
    purpose: str | None = None
    tool: str | None = None
    approval: str | None = None
    txn: str | None = None


class Seen:
    """The memory of proofs that were accepted (§7), and of WITs that are good for one call (step 17)."""

    def __init__(self, began, room=100_000):
        self.began, self.room = math.floor(began), room
        self.proofs, self.wits, self.lock = {}, {}, threading.Lock()

    def check_one_use(self, wit, proof):
        need(self.wits.get(wit, (proof,))[0] == proof, "used", "another proof with this WIT was accepted")

    def accept(self, proof, made, until, now, one_use=None):
        """Checks and notes in one go; `one_use` is the WIT and its end, if it is good for one call."""
        with self.lock:
            if len(self.proofs) + len(self.wits) + 2 > self.room:
                self.proofs = {key: end for key, end in self.proofs.items() if end > now}
                self.wits = {key: value for key, value in self.wits.items() if value[1] > now}
            if one_use:
                self.check_one_use(one_use[0], proof)  # again: other threads came between
            need(math.floor(made) > self.began, "before_start")
            need(proof not in self.proofs, "replayed")
            need(len(self.proofs) + len(self.wits) + 2 <= self.room, "busy", "there is no room")
            self.proofs[proof] = until
            if one_use:
                self.wits[one_use[0]] = (proof, one_use[1])


def need(holds, label, why=""):
    if not holds:
        raise Refused(label, why)


def b64encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64decode(text):
    """Unpadded base64url, and in the one spelling that those bytes have."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("no unpadded base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64encode(data) != text:
        raise ValueError("base64url with bits left over")
    return data


def digest(text):
    return b64encode(hashlib.sha256(text.encode()).digest())


def parse_object(data):
    """A JSON object, in which no object has a name twice (§2)."""
    def unique(pairs):
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("a name that is there twice")
        "".join([*members, *(value for value in members.values() if isinstance(value, str))]).encode()  # no lone surrogates
        return members

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def is_number(value):
    """Of a size that any arithmetic bears. Neither True nor NaN is one."""
    return type(value) in (int, float) and abs(value) < 2**53


def public_key(jwk):
    """The key of a JWK (RFC 7518, section 6.2), if it is of the kind that ES256 is for."""
    x, y = b64decode(jwk.get("x")), b64decode(jwk.get("y"))
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256" or len(x) != 32 or len(y) != 32:
        raise ValueError("a key of another kind")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + x + y)


def thumbprint(jwk):
    """RFC 7638."""
    return digest(json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":")))


def parse_jws(token, typ, label):
    """The header and the claims of a JWS in compact serialization (§1), and what its signature is to be verified by."""
    try:
        parts = [b64decode(part) for part in token.split(".")]
        if len(parts) != 3 or len(token) > LONGEST:
            raise ValueError("no JWS in compact serialization")
        header, claims = parse_object(parts[0]), parse_object(parts[1])
    except (ValueError, RecursionError) as error:
        raise Refused(label, str(error)) from None
    # jwk, jku, x5c and x5u have no say (§2): nothing here reads them
    need(header.get("typ") == typ and header.get("alg") == ALGORITHM and "crit" not in header, label, "header")

    def check(key):
        signature = parts[2]  # R and S (RFC 7518, section 3.4)
        need(len(signature) == 64, label, "signature")
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        try:
            key.verify(encode_dss_signature(r, s), token.rpartition(".")[0].encode(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Refused(label, "signature") from None
    return header, claims, check


def trust_domain(spiffe_id):
    """That of a SPIFFE ID; None if it is not one (SPIFFE-ID, section 2)."""
    if not isinstance(spiffe_id, str) or len(spiffe_id) > 2048:
        return None
    form = re.fullmatch(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)*)", spiffe_id)
    return form[1] if form and not {".", ".."} & set(form[2].split("/")) else None


def normal_form(uri):
    """Scheme, authority and path of the normal form (§5), or None for a refusal."""
    form = re.fullmatch(r"(?s)([A-Za-z]+)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?(/[^?#]*)?(?:[?#].*)?", uri)
    if not form or len(uri.encode()) > 4096 or form[1].lower() not in ("http", "https"):
        return None
    scheme, host, port, path = form[1].lower(), form[2].lower(), int(form[3] or 0), form[4] or "/"
    try:
        last = ([label for label in host.split(".") if label] or [""])[-1]
        if host.startswith("["):
            address = ipaddress.IPv6Address(host[1:-1])
            host = f"[::ffff:{address.ipv4_mapped}]" if address.ipv4_mapped else f"[{address}]"
        elif re.fullmatch(r"[0-9]+|0x.*", last):
            ipaddress.IPv4Address(host)
    except ValueError:
        return None
    if form[3]:
        if not 1 <= port <= 65535:
            return None
        host += "" if (scheme, port) in (("http", 80), ("https", 443)) else f":{port}"

    if not re.fullmatch(r"(?:[A-Za-z0-9._~/!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*", path):
        return None
    if any(code < 0x20 or code in (0x5C, 0x7F) for code in bytes.fromhex("".join(re.findall(r"%(..)", path)))):
        return None
    path = re.sub(r"%(..)", unescape, path)
    pieces = (re.split(r";|%3B", piece)[0] for piece in re.split(r"/|%2F", path))
    return None if {".", ".."} & set(pieces) else (scheme, host, path)


def unescape(escape):
    """`%XX` of an unreserved character is that character; any other is kept, in capitals."""
    character = chr(int(escape[1], 16))
    return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else escape[0].upper()


def covers(target, uri):
    """Whether a target covers a URI, which is in normal form (§5)."""
    if target == "*":
        return True
    prefix = normal_form(target)
    if not prefix or prefix[:2] != uri[:2] or not uri[2].startswith(prefix[2]):
        return False
    return prefix[2] == uri[2] or prefix[2].endswith("/") or uri[2][len(prefix[2])] == "/"


def words(scope):
    return [word for word in scope.split(" ") if word]


def well_formed(value, required, optional):
    """Whether it is an object with members of these types; others are ignored."""
    def is_a(kind, member):
        return is_number(member) if kind is float else isinstance(member, kind)

    return (isinstance(value, dict) and all(name in value and is_a(kind, value[name]) for name, kind in required.items())
            and all(name not in value or is_a(kind, value[name]) for name, kind in optional.items()))


def verify_wit(token, keys, now, leeway):
    """§4, step 2, which is §2. Returns the claims and the key that proofs are made with."""
    header, wit, check = parse_jws(token, "wit+jwt", "wit_invalid")
    domain, kid, cnf = trust_domain(wit.get("sub")), header.get("kid"), wit.get("cnf")
    need(domain, "wit_invalid", "sub is no SPIFFE ID")
    known = [key for key in keys.get(domain, {}).get("keys", ()) if key.get("use") == "wit-svid" and key.get("kid") == kid]
    need(isinstance(kid, str) and len(known) == 1, "wit_invalid", "no such key in this trust domain")  # §8: fetch again
    need(isinstance(cnf, dict) and isinstance(cnf.get("jwk"), dict), "wit_invalid", "cnf")
    need(not PRIVATE & set(cnf["jwk"]) and not {"jku", "jwe"} & set(cnf), "wit_invalid", "cnf")
    need(cnf["jwk"].get("alg") == ALGORITHM, "wit_invalid", "alg of cnf")
    try:
        check(public_key(known[0]))
        key = public_key(cnf["jwk"])
    except ValueError as error:
        raise Refused("wit_invalid", str(error)) from None
    need("aud" not in wit, "wit_invalid", "aud")
    need(is_number(wit.get("exp")) and now < wit["exp"] + leeway, "wit_invalid", "exp")
    need("nbf" not in wit or (is_number(wit["nbf"]) and now >= wit["nbf"]), "wit_invalid", "nbf")
    return wit, key


def session_claims(wit, proof):
    """§4, step 11, with what §2 and §3 say of these claims. Both claims `tether` and who acts, or None outside a session."""
    if "tether" in wit:
        need(well_formed(wit["tether"], {"sid": str, "target": str, "scope": str, "one_use": bool, "binding": float},
                         {"introspect": str}), "proof_invalid", "tether of the WIT")
    if "tether" in proof:
        need(well_formed(proof["tether"], {"sid": str, "purpose": str, "boundary": str, "effect": str},
                         {"tool": str, "arguments_sha256": str, "approval": str})
             and proof["tether"]["boundary"] in BOUNDARIES, "proof_invalid", "tether of the proof")
    need(("tether" in wit) == ("tether" in proof), "proof_of_another_token", "one of them is of a session")
    if "tether" not in wit:
        return None
    need(wit["tether"]["sid"] == proof["tether"]["sid"], "proof_of_another_token", "sid")
    need(well_formed(proof, {"sub": str, "txn": str}, {"scope": str}), "proof_invalid", "claims beside tether")
    if "sub_id" in proof:
        need(well_formed(proof["sub_id"], {"format": str, "iss": str, "sub": str}, {})
             and (proof["sub_id"]["format"], proof["sub_id"]["sub"]) == ("iss_sub", proof["sub"]), "proof_invalid", "sub_id")
    actors, act = [], proof
    while "act" in act:
        act = act["act"]
        need(well_formed(act, {"sub": str}, {}), "proof_invalid", "act")
        actors.append(act["sub"])
    return wit["tether"], proof["tether"], actors or [proof["sub"]]


def verify(request, keys, now, seen, leeway=LEEWAY):
    """§4. `keys` has the JWK set of each trust domain by its name; `now` is Unix time; `seen` is one memory for all requests."""
    if not 0 <= leeway <= 30 or request.effect not in (None, *EFFECTS):
        raise ValueError("what the verifier brings is not good")

    # 1. One WIT and one proof; none of the headers twice (§1).
    sent = {}
    for name, value in request.headers:
        sent.setdefault(name.lower(), []).append(value)
    token, authorization, txn_token = (sent.get(name, []) for name in ("workload-identity-token", "authorization", "txn-token"))
    need(len(token) == 1 and token[0] and len(authorization) == 1 and len(txn_token) <= 1, "no_proof")
    scheme, _, proof_token = authorization[0].partition(" ")
    need(scheme.lower() == "wpt" and proof_token, "no_proof")

    wit, key = verify_wit(token[0], keys, now, leeway)  # 2.
    _, proof, check = parse_jws(proof_token, "wpt+jwt", "proof_invalid")  # 3. No other key is ever used.
    check(key)

    # 4. and 5. The proof is for this request.
    need(isinstance(proof.get("aud"), str), "proof_invalid", "aud")
    uri = normal_form(request.uri)
    need(uri and normal_form(proof["aud"]) == uri, "another_uri")
    need(isinstance(proof.get("htm"), str), "proof_invalid", "htm")
    need(proof["htm"] == request.method, "another_method")

    # 6. Time (§6).
    end, made = proof.get("exp"), proof.get("iat", now)
    need(is_number(end) and is_number(made), "proof_invalid", "exp or iat")
    need(now < end + leeway and made <= now + leeway and end <= now + leeway + LIFE, "proof_expired")

    # 7.
    need(isinstance(proof.get("jti"), str) and 1 <= len(proof["jti"].encode()) <= 128, "proof_invalid", "jti")

    # 8. and 9. It belongs to this WIT, to this transaction token, and to no other kind of token.
    need(isinstance(proof.get("wth"), str), "proof_invalid", "wth")
    need(proof["wth"] == digest(token[0]), "proof_of_another_token", "wth")
    need(("tth" in proof) == bool(txn_token), "proof_of_another_token", "tth")
    need(not txn_token or (txn_token[0].isascii() and proof["tth"] == digest(txn_token[0])), "proof_of_another_token", "tth")
    need(proof.get("oth", {}) == {}, "proof_of_another_token", "oth")

    # 10.
    need(request.body_sha256 is None or proof.get("body_sha256") == request.body_sha256, "another_body")

    claims = session_claims(wit, proof)  # 11.
    print_of_key = thumbprint(wit["cnf"]["jwk"])
    identity, one_use, binding = (print_of_key, proof["jti"]), None, 0
    verified = Verified(wit["sub"], binding, print_of_key)
    if claims is None:
        need(not request.require_session, "no_session")
        need(not request.scopes, "scope")
    else:
        of_wit, of_proof, actors = claims
        need(actors[0] == wit["sub"], "proof_of_another_token", "another agent acts")  # 12.
        need(covers(of_wit["target"], uri), "target")  # 13.
        scopes = words(proof.get("scope", ""))  # 14.
        need(set(scopes) <= set(words(of_wit["scope"])) and set(request.scopes) <= set(scopes), "scope")
        for name, label in (("tool", "tool"), ("arguments_sha256", "arguments")):  # 15.
            asked = getattr(request, name)
            need(asked is None or name not in of_proof or of_proof[name] == asked, label)
        least = "read" if request.method in ("GET", "HEAD", "OPTIONS", "TRACE") else "write"  # 16.
        need(of_proof["effect"] in EFFECTS and EFFECTS.index(of_proof["effect"]) >= EFFECTS.index(least), "effect")
        if of_wit["one_use"]:  # 17.
            one_use = (proof["wth"], wit["exp"] + leeway)
            seen.check_one_use(one_use[0], identity)
        binding, user = of_wit["binding"], proof.get("sub_id")
        verified = Verified(
            wit["sub"], binding, print_of_key, session=of_wit["sid"], subject=proof["sub"], actors=tuple(actors),
            user=(user["iss"], user["sub"]) if user else None, scopes=tuple(scopes),
            effect=max(of_proof["effect"], request.effect or "read", key=EFFECTS.index),
            purpose=of_proof["purpose"], tool=of_proof.get("tool"), approval=of_proof.get("approval"), txn=proof["txn"])
    need(binding >= request.min_binding, "binding")  # 18.
    seen.accept(identity, proof.get("iat", end - LIFE), end + leeway, now, one_use)  # 19., §7
    return verified


def judge(vectors, case):
    """What this verifier says of a test vector (§12), in the form of its `result`."""
    wanted = {field.name for field in fields(Request)} & set(case["request"])
    request = Request(list(case["headers"].items()), **{name: case["request"][name] for name in wanted})
    try:  # each case is judged alone: with a memory of its own, which began long ago
        verified = verify(request, {vectors["trust_domain"]: vectors["wit_keys"]}, case["now"], Seen(0), vectors["leeway"])
    except Refused as refused:
        return {"valid": False, "reason": refused.label}
    if verified.thumbprint != vectors["thumbprint"]:
        return {"valid": True, "thumbprint": verified.thumbprint}
    said = {"valid": True, "spiffe_id": verified.spiffe_id}
    if verified.session is not None:
        said |= {name: getattr(verified, name) for name in ("session", "subject", "effect")} | {"scopes": list(verified.scopes)}
    return said


def main():
    arguments = argparse.ArgumentParser(description="Judges the test vectors of the session profile.")
    arguments.add_argument("--vectors", required=True, metavar="FILE")
    with open(arguments.parse_args().vectors, encoding="utf-8") as file:
        vectors = json.load(file)
    said = [(case["name"], judge(vectors, case), case["result"]) for case in vectors["cases"]]
    wrong = [f"{name}: {json.dumps(got)} instead of {json.dumps(wanted)}" for name, got, wanted in said if got != wanted]
    if not said:
        wrong.append("there is no case")
    print("\n".join(wrong) if wrong else f"all agree: {len(said)} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
