//! The TLS signer as an oracle: what a process tries to have signed with a key that it may use, and that is no handshake.

use super::Attack;
use crate::orders::{Order, Refused};
use crate::scene::{P256, Process, Scene, handshake};
use crate::target::Side;

pub const ATTACKS: &[Attack] = &[
    Attack::new("the TLS signer is given something other than a handshake", not_a_handshake).on(BOTH),
    Attack::new("the TLS signer is asked for another signature scheme", other_scheme).on(BOTH),
    Attack::new("the TLS signer is given the handle of a key for proofs", key_for_proofs).on(BOTH),
    Attack::new("the TLS signer is given the handle of another's key", key_of_another).on(BOTH),
];

const BOTH: &[Side] = &[Side::Naive, Side::Tether];

fn sign(process: &mut Process, key: &str, scheme: u32, content: Vec<u8>) -> Result<Vec<u8>, Refused> {
    process.order(&Order::SignTls { key: key.to_owned(), scheme, content, on_behalf_of: None })
}

fn content(padding: &[u8], context: &[u8], rest: &[u8]) -> Vec<u8> {
    [padding, context, rest].concat()
}

fn not_a_handshake(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let key = victim.hold_x509().key;
    const SPACES: [u8; 64] = [b' '; 64];
    const CLIENT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
    const HASH: [u8; 32] = [7; 32];
    let jws = "eyJhbGciOiJFUzI1NiIsInR5cCI6IndwdCtqd3QifQ.eyJhdWQiOiJodHRwczovL3Rvb2wifQ";
    let rows = [
        ("nothing", Vec::new()),
        ("arbitrary bytes", b"pay 1000 to the thief".to_vec()),
        ("a bare hash, which TLS 1.2 and much else signs", HASH.to_vec()),
        ("the randoms and parameters of a TLS 1.2 ServerKeyExchange", content(&[3; 64], &[3, 0, 23, 65], &[4; 65])),
        ("the start of a token", jws.as_bytes().to_vec()),
        ("the start of a certificate", content(&[0x30, 0x82, 1, 0], &[0xa0, 3, 2, 1, 2], &[0; 64])),
        ("63 spaces", content(&SPACES[1..], CLIENT, &HASH)),
        ("65 spaces", content(&[b' '; 65], CLIENT, &HASH)),
        ("tabs", content(&[b'\t'; 64], CLIENT, &HASH)),
        ("no padding", content(&[], CLIENT, &HASH)),
        ("another context", content(&SPACES, b"TLS 1.3, client Finished\0", &HASH)),
        ("a context of another protocol", content(&SPACES, b"QUIC 1.0, client CertificateVerify\0", &HASH)),
        ("a context in other letters", content(&SPACES, b"tls 1.3, client certificateverify\0", &HASH)),
        ("a context without its end", content(&SPACES, &CLIENT[..CLIENT.len() - 1], &HASH)),
        ("an exported authenticator", content(&SPACES, b"Exported Authenticator\0", &HASH)),
        ("no hash", content(&SPACES, CLIENT, &[])),
        ("20 bytes", content(&SPACES, CLIENT, &HASH[..20])),
        ("31 bytes", content(&SPACES, CLIENT, &HASH[..31])),
        ("33 bytes", content(&SPACES, CLIENT, &[7; 33])),
        ("64 bytes, as of SHA-512", content(&SPACES, CLIENT, &[7; 64])),
        ("a handshake and more", [handshake(), jws.as_bytes().to_vec()].concat()),
    ];
    for (what, content) in rows {
        eprintln!("{what}");
        scene.judge(sign(&mut victim, &key, P256, content), "InvalidArgument", "held");
    }
    sign(&mut victim, &key, P256, handshake()).expect("a handshake");
}

fn other_scheme(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let key = victim.hold_x509().key;
    // ECDSA with P-384 and P-521, RSA-PSS, RSA PKCS#1, ECDSA with SHA-1, Ed25519; what only looks right in 16 bits.
    for scheme in [0x0503, 0x0603, 0x0804, 0x0401, 0x0203, 0x0807, 0, 0x1_0403] {
        scene.judge(sign(&mut victim, &key, scheme, handshake()), "InvalidArgument", "held");
    }
}

fn key_for_proofs(side: Side) {
    let mut scene = Scene::on(side);
    let mut victim = scene.victim();
    let key = victim.hold_wit().key;
    scene.judge(sign(&mut victim, &key, P256, handshake()), "InvalidArgument", "held");
}

fn key_of_another(side: Side) {
    let mut scene = Scene::on(side);
    let key = scene.victim().hold_x509().key;
    let mut victim = scene.victim();
    let kept = victim.hold_x509().key;
    let mut thief = scene.thief();
    thief.hold_x509();
    for key in [key, kept] {
        scene.judge(sign(&mut thief, &key, P256, handshake()), "PermissionDenied", "held");
    }
}
