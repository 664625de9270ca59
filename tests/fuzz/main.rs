//! Every parser of bytes from outside, under inputs made from good ones. Nothing may panic, and what is taken must be
//! what was meant: a document reads back as itself, and nobody but the signer makes one that is believed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

mod mutate;

use std::time::Duration;

use mutate::fuzz;
use serde_json::json;
use tether::api::credentials::fuzz_credential_address;
use tether::audit::{self, Audit, Event};
use tether::base::clock::Clock;
use tether::bundle::{Bundle, fuzz_bundle};
use tether::client::Endpoint;
use tether::id::{SpiffeId, TrustDomain};
use tether::jwt::{Jwk, JwtAuthorities, JwtSigner, fuzz_token, private_jwk, read_private_jwk, validate};
use tether::proxy::mcp::Message;
use tether::registry::{
    ImportOptions, Mistake, Parents, Rules, Source, Template, parse_entries, parse_entry, spire_entries,
};
use tether::selector::Selector;
use tether::user::{IssuerSettings, KeySource, fuzz_user};
use tether::wit::{Confirmation, WIT_TYPE, WitAuthorities, WitClaims, WitSigner, fuzz_wit};
use tether::x509::{
    Certificate, Chain, Issuer, KeyType, LeafParams, PrivateKey, Serial, Validity, X509Authorities, fuzz_chain,
    self_signed_root, verify,
};
use time::OffsetDateTime;
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const WORKLOAD: &str = "spiffe://fuzz.test/unit/billing";

fn domain() -> TrustDomain {
    TrustDomain::parse("fuzz.test").unwrap()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyType::EcP256).unwrap()
}

/// A root, and what a workload of it presents: its certificate and the signing authority's.
fn authority_and_chain() -> (X509Authorities, Chain) {
    let validity = Validity { not_before: NOW - Duration::from_secs(60), not_after: NOW + Duration::from_secs(3600) };
    let serial = |n| Serial::from_random([n; 16]);
    let root = self_signed_root(domain(), key(), validity, &serial(1)).unwrap();
    let (signing_key, leaf_key) = (key(), key());
    let signing = root.sign_ca(signing_key.public_key(), validity, &serial(2)).unwrap();
    let issuer = Issuer::new(domain(), signing.clone(), signing_key).unwrap();
    let leaf = issuer.sign_leaf(&LeafParams {
        spiffe_id: &SpiffeId::parse(WORKLOAD).unwrap(),
        public_key: leaf_key.public_key(),
        dns_names: &["billing.fuzz.test".to_owned()],
        validity,
        serial: &serial(3),
    });
    let authorities = X509Authorities::new(domain(), [root.certificate().clone()]).unwrap();
    (authorities, Chain::from_certificates(&[leaf.unwrap(), signing.der().clone()]).unwrap())
}

#[test]
fn addresses_that_ask_for_credentials() {
    let corpus = texts(&[
        "adf9d86b6eda275e/unit/foobar.service/svid.pem",
        "0/unit/a@b.socket/jwt-https%3A%2F%2Fa.example%2F%25",
        r"1f/unit/a\x2db.mount/jwt-a%20b",
    ]);
    fuzz(&corpus, fuzz_credential_address);
}

#[test]
fn frames_and_header_compression() {
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }
    let settings = frame(4, 0, 0, &[]);
    let ping = frame(6, 1, 0, &[0; 8]);
    // :method POST, :scheme http, :path and :authority as literals that go into the table, and twice.
    let fields = b"\x83\x86\x44\x0c/Svc/Method1\x41\x0b/tmp/a.sock\x40\x05te-x1\x03abc";
    let indexed = b"\x83\x86\xc0\xbf\xbe";
    let huffman = b"\x83\x86\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let padded = [&[2][..], fields, &[0, 0]].concat();
    let data = frame(0, 1, 1, b"\0\0\0\0\0");
    let requests = [
        [settings.clone(), ping.clone(), frame(1, 4, 1, fields), data.clone(), frame(1, 5, 3, indexed)].concat(),
        [settings.clone(), frame(1, 4, 1, huffman), data, frame(1, 12, 3, &padded)].concat(),
        [settings, frame(1, 0, 1, &fields[..9]), frame(9, 4, 1, &fields[9..]), frame(8, 0, 0, &[0, 0, 1, 0]), ping]
            .concat(),
        frame(1, 4, 1, b"\x3f\xe1\x1f\x20\x82"),
    ];
    // The first byte says how the rest is cut; an odd one puts the preface in front.
    let corpus: Vec<Vec<u8>> =
        requests.iter().flat_map(|request| [1, 3, 15].map(|cut| [&[cut], &request[..]].concat())).collect();
    fuzz(&corpus, tether::peer::wire::fuzz::fuzz_inbound);
}

#[test]
fn certificate_chains_and_nobody_but_the_issuer_makes_one_that_is_believed() {
    let (authorities, chain) = authority_and_chain();
    let (_, strange) = authority_and_chain();
    let good = chain.to_der().to_vec();
    fuzz(&[good, strange.to_der().to_vec(), authorities.to_der()], |bytes| {
        fuzz_chain(bytes);
        let Ok(read) = Chain::from_der(bytes) else { return };
        if let Ok(svid) = verify(&read, &authorities, NOW, &[]) {
            assert_eq!(svid.leaf().der(), chain.leaf().der(), "somebody else's certificate is believed");
        }
    });
}

#[test]
fn text_armour_of_certificates_and_keys() {
    let (authorities, chain) = authority_and_chain();
    let key = key().to_pem().unwrap().expose().clone();
    let corpus = texts(&[&chain.to_pem(), &authorities.to_pem(), &key, &format!("{key}{}", authorities.to_pem())]);
    fuzz(&corpus, |bytes| {
        if let Ok(chain) = Chain::from_pem(bytes) {
            assert_eq!(Chain::from_pem(chain.to_pem().as_bytes()).unwrap().to_der(), chain.to_der());
        }
        if let Ok(certificate) = Certificate::from_pem(bytes) {
            assert_eq!(Certificate::from_pem(certificate.to_pem().as_bytes()).unwrap().der(), certificate.der());
        }
        if let Ok(read) = X509Authorities::from_pem(domain(), bytes) {
            assert_eq!(X509Authorities::from_pem(domain(), read.to_pem().as_bytes()).unwrap().to_der(), read.to_der());
        }
        if let Ok(key) = PrivateKey::from_pem(bytes) {
            let again = PrivateKey::from_pem(key.to_pem().unwrap().expose().as_bytes()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
        }
        let _ = Bundle::from_pem(&domain(), bytes);
    });
}

#[test]
fn tokens_and_nobody_but_the_issuer_makes_one_that_is_believed() {
    let sign = || {
        let signer = JwtSigner::new(&key()).unwrap();
        let now = NOW.unix_timestamp();
        let claims = json!({"sub": WORKLOAD, "aud": ["demo", "other"], "exp": now + 300, "iat": now, "jti": "one"});
        let token = signer.sign(&claims).unwrap();
        (token, JwtAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]))
    };
    let ((good, authorities), (strange, _)) = (sign(), sign());
    let corpus = texts(&[&good, &strange, "eyJhbGciOiJub25lIn0.e30.", "a.b.c.d.e"]);
    let checked = |text: &str| validate(text, "demo", |_| Some(&authorities), NOW, Duration::ZERO);
    assert!(checked(&good).is_ok());
    fuzz(&corpus, |bytes| {
        fuzz_token(bytes);
        if let Ok(text) = std::str::from_utf8(bytes)
            && checked(text).is_ok()
        {
            assert_eq!(text, good, "another token is believed");
        }
    });
}

#[test]
fn subject_tokens_and_keys_and_nobody_but_the_issuer_makes_one_that_is_believed() {
    let (signer, stranger) = (JwtSigner::new(&key()).unwrap(), JwtSigner::new(&key()).unwrap());
    let now = NOW.unix_timestamp();
    let issuer = "https://login.fuzz.test";
    let claims = json!({"iss": issuer, "sub": "alice", "aud": ["demo"], "exp": now + 300, "sid": "1", "azp": "demo"});
    let (good, strange) = (signer.sign(&claims).unwrap(), stranger.sign(&claims).unwrap());
    let published = |signer: &JwtSigner| {
        let mut members = signer.public_key().to_json();
        members.insert("kid".to_owned(), signer.key_id().into());
        json!({ "keys": [members, { "kty": "oct", "k": "AQ" }], "other": [null, 1.5] }).to_string()
    };
    let keys = published(&signer);
    let settings = IssuerSettings {
        audience: "demo".to_owned(),
        keys: KeySource::Discovery,
        algorithms: IssuerSettings::ALGORITHMS.to_vec(),
        authorized_parties: vec!["demo".to_owned()],
        max_age: None,
        max_ttl: Some(Duration::from_secs(60)),
        ca_file: None,
    };
    assert!(fuzz_user(&good, keys.as_bytes(), issuer, &settings, NOW).is_ok());
    let corpus = texts(&[&good, &strange, "eyJhbGciOiJub25lIn0.e30.", &keys, &published(&stranger)]);
    fuzz(&corpus, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && fuzz_user(text, keys.as_bytes(), issuer, &settings, NOW).is_ok()
        {
            assert_eq!(text, good, "another token is believed");
        }
        // Whatever keys an issuer publishes, they check its own tokens or none.
        let _ = fuzz_user(&good, bytes, issuer, &settings, NOW);
    });
}

#[test]
fn wits_and_nobody_but_the_issuer_makes_one_that_is_believed() {
    let sign = || {
        let signer = WitSigner::new(&key()).unwrap();
        let cnf = Confirmation::of(Jwk::from_spki(key().public_key()).unwrap());
        let (sub, exp) = (SpiffeId::parse(WORKLOAD).unwrap(), NOW + Duration::from_secs(300));
        let token = signer.sign(&WitClaims { sub: &sub, exp, iat: NOW, jti: "one", cnf: &cnf, session: None }).unwrap();
        (token, WitAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]))
    };
    let ((good, authorities), (strange, _)) = (sign(), sign());
    assert!(fuzz_wit(good.as_bytes(), &authorities, NOW));
    fuzz(&texts(&[&good, &strange, "eyJhbGciOiJub25lIn0.e30.", "a.b.c.d.e"]), |bytes| {
        assert!(!fuzz_wit(bytes, &authorities, NOW) || bytes == good.as_bytes(), "another WIT is believed");
    });
}

#[test]
fn claims_of_wits_whoever_signs_them() {
    let signer = JwtSigner::with_type(&key(), WIT_TYPE).unwrap();
    let authorities = WitAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
    let mut jwk = serde_json::Value::Object(signer.public_key().to_json());
    jwk["alg"] = json!("ES256");
    let now = NOW.unix_timestamp();
    let good = json!({"sub": WORKLOAD, "exp": now + 300, "nbf": now, "iat": now, "cnf": {"jwk": jwk}}).to_string();
    let wrong =
        r#"{"sub":"spiffe://fuzz.test/","exp":1e300,"aud":[],"cnf":{"jwk":{"kty":"RSA","n":"","e":""},"jku":1}}"#;
    fuzz(&texts(&[&good, wrong]), |bytes| {
        if let Ok(claims) = serde_json::from_slice::<serde_json::Value>(bytes) {
            fuzz_wit(signer.sign(&claims).unwrap().as_bytes(), &authorities, NOW);
        }
    });
}

#[test]
fn private_keys_as_json() {
    let keys: Vec<String> = [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048]
        .map(|kind| private_jwk(&PrivateKey::generate(kind).unwrap()).unwrap().expose().clone())
        .into();
    let corpus: Vec<&str> = keys.iter().map(String::as_str).collect();
    fuzz(&texts(&corpus), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok((key, algorithm)) = read_private_jwk(text) {
            assert!(Jwk::from_spki(key.public_key()).unwrap().fits(algorithm));
            let (again, _) = read_private_jwk(private_jwk(&key).unwrap().expose()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
        }
    });
}

#[test]
fn bundles() {
    let (authorities, _) = authority_and_chain();
    let signer = JwtSigner::new(&key()).unwrap();
    let jwt = JwtAuthorities::new(domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
    let wit_key = Jwk::from_spki(key().public_key()).unwrap();
    let wit = WitAuthorities::new(domain(), [(wit_key.thumbprint(), wit_key)]);
    let bundle =
        Bundle::new(authorities, jwt).with_wit(wit).with_sequence(7).with_refresh_hint(Duration::from_secs(300));
    let rsa = r#"{"keys":[{"kty":"RSA","use":"jwt-svid","kid":"r","n":"AQAB","e":"AQAB"},{"kty":"oct","use":"x"}]}"#;
    let empty = r#"{"keys":[],"spiffe_sequence":1.5e300,"spiffe_refresh_hint":-1}"#;
    fuzz(&texts(&[&bundle.to_json().unwrap(), &bundle.jwt_jwks(), rsa, empty]), fuzz_bundle);
}

#[test]
fn spiffe_ids_and_trust_domains() {
    let corpus =
        texts(&[WORKLOAD, "spiffe://td/a/b-c_d.e", "SPIFFE://TD/", "spiffe://td/../x", "example.org", "spiffe://td"]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(id) = SpiffeId::parse(text) {
            assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
            assert_eq!(id.as_str(), format!("spiffe://{}{}", id.trust_domain_name(), id.path()));
            assert!(id.is_member_of(&id.trust_domain()));
            assert!(id.path().split('/').skip(1).all(tether::id::is_path_segment));
        }
        if let Ok(domain) = TrustDomain::parse(text) {
            assert_eq!(domain.as_str(), text, "a trust domain is never repaired");
        }
        if let Ok(domain) = TrustDomain::parse_name_or_id(text) {
            assert_eq!(TrustDomain::parse_name_or_id(domain.id().as_str()), Ok(domain));
        }
    });
}

#[test]
fn selectors() {
    let corpus = texts(&[
        "unix:uid:1000",
        "unix:path:/usr/bin/a b",
        "systemd:unit:x.service",
        "docker:label:a:b",
        "cgroup:path:/",
    ]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(selector) = Selector::parse(text) {
            assert_eq!(selector.as_str(), text);
            assert_eq!(Selector::new(selector.kind(), selector.key(), selector.value()), Some(selector));
        }
    });
}

#[test]
fn endpoint_addresses() {
    let corpus = texts(&[
        "unix:///run/a.sock",
        "unix:/a%20b",
        "tcp://127.0.0.1:80",
        "tcp://[::1]:1",
        "UNIX:///A",
        "unix:///%25%3f%23",
    ]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(endpoint) = Endpoint::parse(text) {
            assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint), "what is printed can be pasted");
        }
    });
}

const ENTRIES: &str = r#"
[[entry]]
id = "billing-api"
spiffe_id = "spiffe://fuzz.test/unit/{systemd.name}"
match = ["systemd:unit:billing.service", "unix:user:billing"]
unless = ["unix:uid:0"]
owner = "team@fuzz.test"
hint = "internal"
x509_ttl = "15m"
jwt_ttl = "5m"
credential_ttl = "1h"
audiences = ["https://api.fuzz.test", "*"]
serves = ["https://tool.fuzz.test/"]
may_act_for = ["spiffe://fuzz.test/agent/*"]
dns_names = ["billing.fuzz.test"]
federates_with = ["partner.test"]
bind = "unit"
single_use = true
exportable = true
expires_at = "2027-03-01T00:00:00Z"

[[entry]]
spiffe_id = "spiffe://fuzz.test/user/{unix.user|unix.uid}"
match = ["unix:gid:7"]
owner = "täm"
"#;

/// Every mistake says what is wrong, at a place that is in the text.
fn checked(mistakes: &[Mistake], text: &str) {
    assert!(!mistakes.is_empty());
    for mistake in mistakes {
        assert!(!mistake.message.is_empty());
        assert!(mistake.line as usize <= text.split('\n').count(), "{mistake}");
    }
}

#[test]
fn registration_entries() {
    let rules = Rules::new(domain());
    fuzz(
        &texts(&[
            ENTRIES,
            "entry = []",
            "id = \"x\"\nmatch = [\"unix:uid:1\"]\nspiffe_id = \"spiffe://fuzz.test/x\"\nowner = \"o\"",
        ]),
        |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match parse_entries(text, &Source::BuiltIn, &rules) {
                Ok(entries) => {
                    for entry in entries {
                        let again =
                            parse_entry(&entry.to_toml(), &Source::BuiltIn, &rules).expect("what is written is read");
                        assert!(again == entry, "{}", entry.to_toml());
                    }
                }
                Err(mistakes) => checked(&mistakes, text),
            }
            if let Err(mistakes) = parse_entry(text, &Source::BuiltIn, &rules) {
                checked(&mistakes, text);
            }
            if let Ok(template) = Template::parse(text, &domain()) {
                assert_eq!(template.as_str(), text);
            }
        },
    );
}

#[test]
fn templates() {
    let corpus = texts(&[
        "spiffe://fuzz.test/{unix.user|unix.uid}/x",
        "spiffe://fuzz.test/{systemd.name}-{unix.gid}",
        "spiffe://fuzz.test/a",
    ]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(template) = Template::parse(text, &domain()) {
            assert_eq!(template.as_str(), text);
        }
    });
}

#[test]
fn entries_taken_over_from_spire() {
    let rules = Rules { owner_required: true, ..Rules::new(TrustDomain::parse("example.org").unwrap()) };
    let options = ImportOptions { parents: Parents::All, owner: "team@example.org".to_owned(), rules };
    let corpus = texts(&[
        include_str!("../../src/registry/import/testdata/spire-entries.json"),
        include_str!("../../src/registry/import/testdata/spire-entries-refused.json"),
    ]);
    fuzz(&corpus, |bytes| match spire_entries(bytes, &options, NOW) {
        Ok(imported) => {
            let read = parse_entries(&imported.to_toml(), &Source::BuiltIn, &options.rules);
            assert_eq!(read.expect("what is imported can be loaded").len(), imported.entries.len());
        }
        Err(problems) => assert!(!problems.is_empty()),
    });
}

#[test]
fn configuration_files() {
    let all = tether::config::example().replace("\n#", "\n");
    let some =
        "trust_domain = \"td\"\n[http]\naddress = \"127.0.0.1:9465\"\n[log]\nlevel = \"info,tether::peer=trace\"\n";
    let wrong = "trust_domain = \"TD\"\n[limits]\nconnections = -1\nhalf_open = \"10 parsecs\"\nx = 1\n[attest.unix]\nmax_hash = \"1GiB\"";
    fuzz(&texts(&[&tether::config::example(), &all, some, wrong]), tether::config::fuzz_file);
}

#[test]
fn what_the_kernel_says_of_a_process() {
    let corpus = texts(&[
        "12:cpu,cpuacct:/a\n1:name=systemd:/system.slice/a.service\n0::/\n",
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/_x.service\n",
        "0::/../../x\n",
        "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 4294967295 \n",
    ]);
    fuzz(&corpus, tether::attest::fuzz_proc_file);
}

#[test]
fn records_of_the_audit_log_and_no_other_bytes_have_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let settings = audit::Settings {
        dir: dir.path().join("audit"),
        head: dir.path().join("audit.head"),
        rotate: 1 << 20,
        keep: 2,
        keep_for: None,
        on_failure: audit::OnFailure::Refuse,
    };
    let log = Audit::open(settings, "node", Clock::manual(NOW).0).unwrap();
    let (session, reason, by) = ("node.0123456789abcdef".to_owned(), "completed", None);
    log.record(Event::SessionEnded {
        session,
        reason,
        by,
        ended: Vec::new(),
        keys_wiped: 1,
        revoked: vec!["\"é\n".to_owned()],
    });
    log.record(Event::AuditRetired { files: 1, through: 7, through_hash: "0".repeat(64) });
    let lines = audit::last_lines(&log.parts().unwrap(), 3).unwrap();
    let corpus: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
    assert!(corpus.iter().all(|line| audit::fuzz_record(line)));
    fuzz(&corpus, |bytes| {
        assert!(
            !audit::fuzz_record(bytes) || corpus.iter().any(|line| line == bytes),
            "other bytes have a hash that holds"
        );
    });
}

#[test]
fn messages_of_mcp_and_what_is_judged_is_what_another_reader_sees() {
    let corpus = texts(&[
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":{"a":[1.5e3,-0,true,null],"\u0062":"\ud83d\ude00"}}}"#,
        r#"[{"jsonrpc":"2.0","id":"a","method":"tools/list","params":{"_meta":{}}},{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":1,"result":{}}]"#,
        r#" {"method":"tools/call","id":0,"jsonrpc":"2.0","params":{"arguments":null,"name":"t"}} "#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"m"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":1,"Method":"tools/call"}"#,
    ]);
    let json = http::HeaderValue::from_static("application/json");
    let headers = http::HeaderMap::from_iter([(http::header::CONTENT_TYPE, json)]);
    fuzz(&corpus, |bytes| {
        let message = match Message::read(&headers, bytes.to_vec().into()) {
            Ok(message) => message,
            Err(malformed) => {
                serde_json::from_slice::<serde_json::Value>(&malformed.answer().body).expect("the answer is JSON");
                return;
            }
        };
        let other = match serde_json::from_slice::<serde_json::Value>(bytes) {
            Ok(other) => other,
            // One that it has no double for, where numbers do not count: 1e999 in an unknown member.
            Err(error) => return assert!(error.to_string().contains("number out of range"), "{error}"),
        };
        let others = other.as_array().map_or(std::slice::from_ref(&other), Vec::as_slice);
        let calls = message.rpcs();
        assert_eq!(calls.len(), others.len());
        for (call, other) in calls.iter().zip(others) {
            assert_eq!(call.method, other["method"].as_str().unwrap_or("response"));
            assert_eq!(call.arguments.is_some(), other["method"] == "tools/call");
            if call.arguments.is_some() {
                assert_eq!(call.tool, other["params"]["name"].as_str().unwrap());
            }
        }
    });
}
