//! SPIFFE ID, at every door through which one comes: a token's subject, a request's field, a certificate's name, an
//! entry, a bundle's trust domain.

use serde_json::json;
use tether::id::{SpiffeId, TrustDomain};
use tether::x509::{Certificate, Chain, X509Authorities, verify};
use tonic::Code;

use crate::harness::TestAgent;
use crate::support::foreign::{Foreign, federate_with, header};
use crate::support::forge::decode;
use crate::support::{
    AUDIENCE, DOMAIN, DOMAIN_ID, create, entry, entry_with_id, jwt, published, refused, run, set_bundle, validate, x509,
};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "ID-01",
        binds: "iss,val",
        says: "only a URI with scheme spiffe and an authority is a SPIFFE ID",
        shown: Shown::Test(|| {
            run(refused_everywhere(&["http://td/x", "spiffe:///x", "spiffe:td/x", "spiffe://", "td/x", "spiffe", ""]))
        }),
    },
    Rule {
        id: "ID-02",
        binds: "iss,val",
        says: "query and fragment are refused, empty ones too",
        shown: Shown::Test(|| {
            let ids = [
                "spiffe://td/a?q",
                "spiffe://td/a#f",
                "spiffe://td/a?",
                "spiffe://td/a#",
                "spiffe://td?",
                "spiffe://td#",
            ];
            run(refused_everywhere(&ids))
        }),
    },
    Rule {
        id: "ID-03",
        binds: "iss,val",
        says: "user info and port are refused, empty ones too",
        shown: Shown::Test(|| {
            let ids = ["spiffe://u@td/a", "spiffe://@td/a", "spiffe://td:80/a", "spiffe://td:/a", "spiffe://u:p@td/a"];
            run(refused_everywhere(&ids))
        }),
    },
    Rule {
        id: "ID-04",
        binds: "iss,val",
        says: "a trust domain has only a-z, 0-9, dot, hyphen and underscore",
        shown: Shown::Test(|| {
            let ids = [
                "spiffe://t%64/a",
                "spiffe://té/a",
                "spiffe://[::1]/a",
                "spiffe://t*d/a",
                "spiffe://t~d/a",
                "spiffe://t d/a",
            ];
            run(refused_everywhere(&ids))
        }),
    },
    Rule {
        id: "ID-05",
        binds: "iss",
        says: "trust domains are emitted in lower case, and upper case is refused where one is configured",
        shown: Shown::Test(|| run(lower_case())),
    },
    Rule {
        id: "ID-06",
        binds: "iss,val",
        says: "a trust domain that looks like an address or a broken host name is like any other",
        shown: Shown::Test(|| run(no_special_cases())),
    },
    Rule {
        id: "ID-07",
        binds: "iss,val",
        says: "percent encoding in a path is refused",
        shown: Shown::Test(|| run(refused_everywhere(&["spiffe://td/a%62", "spiffe://td/%2e", "spiffe://td/a%"]))),
    },
    Rule {
        id: "ID-08",
        binds: "iss,val",
        says: "empty and dot segments are refused, segments that begin with dots are not",
        shown: Shown::Test(|| run(segments())),
    },
    Rule {
        id: "ID-09",
        binds: "iss,val",
        says: "a slash at the end is refused",
        shown: Shown::Test(|| {
            run(refused_everywhere(&["spiffe://td/", "spiffe://td/a/", "spiffe://partner.example/"]))
        }),
    },
    Rule {
        id: "ID-10",
        binds: "iss,val",
        says: "a segment has only letters, digits, dot, hyphen and underscore",
        shown: Shown::Test(|| {
            let ids = [
                "spiffe://td/a b",
                "spiffe://td/a:b",
                "spiffe://td/a~b",
                "spiffe://td/ü",
                "spiffe://td/a@b",
                "spiffe://td/a+b",
            ];
            run(refused_everywhere(&ids))
        }),
    },
    Rule {
        id: "ID-11",
        binds: "val,cli,end",
        says: "an ID of 2048 bytes goes through entry, certificate, token, field and validation",
        shown: Shown::Test(|| run(longest())),
    },
    Rule {
        id: "ID-12",
        binds: "iss",
        says: "an ID of 2049 bytes is never issued, whether written out or made by a template",
        shown: Shown::Test(|| run(too_long())),
    },
    Rule {
        id: "ID-13",
        binds: "iss,val",
        says: "a trust domain of 255 bytes works and one of 256 is refused",
        shown: Shown::Test(|| run(trust_domain_length())),
    },
    Rule {
        id: "ID-14",
        binds: "val",
        says: "paths compare case-sensitively; upper case in scheme or trust domain is refused rather than folded",
        shown: Shown::Test(|| run(comparison())),
    },
    Rule {
        id: "ID-15",
        binds: "iss",
        says: "the signing authority of the trust domain carries the trust domain's own ID",
        shown: Shown::Test(|| run(authority_id())),
    },
    Rule {
        id: "ID-16",
        binds: "iss",
        says: "ID and public key are inside what is signed: changing either breaks the SVID",
        shown: Shown::Test(|| run(tampered())),
    },
    Rule {
        id: "ID-17",
        binds: "val",
        says: "an authority of one trust domain cannot vouch for an ID of another",
        shown: Shown::Test(|| run(other_domain())),
    },
    Rule {
        id: "ID-18",
        binds: "val",
        says: "only X.509, JWT and WIT documents are taken as SVIDs",
        shown: Shown::Review(
            "`SpiffeId`s that were proven come only from `x509::VerifiedSvid`, `jwt::JwtSvid` and `wit::WitSvid`, whose constructors are private",
        ),
    },
];

async fn refused_everywhere(ids: &[&str]) {
    let (agent, foreign) = Foreign::partner().await;
    for id in ids {
        refused(
            validate(&agent, &foreign.token_with(&agent, "sub", json!(id))).await,
            Code::InvalidArgument,
            "SPIFFE ID",
        );
        if !id.is_empty() {
            refused(jwt(&agent, &[AUDIENCE], id).await, Code::InvalidArgument, "spiffe_id");
        }
        refused(create(&agent, entry_with_id("wrong", id, "")).await, Code::InvalidArgument, "");
        if id.is_ascii() {
            let leaf = foreign.root.leaf(id, agent.clock().now(), |_| ());
            Certificate::from_der(&leaf).unwrap().svid_id().expect_err(id);
        }
    }
}

async fn lower_case() {
    let agent = TestAgent::start().await;
    let flags = vec![("trust_domain".to_owned(), "Example.ORG".to_owned())];
    tether::config::Source { flags, ..tether::config::Source::default() }.load().expect_err("upper case");
    refused(set_bundle(&agent, "Partner.Example", "{\"keys\":[]}").await, Code::InvalidArgument, "trust domain");
    refused(
        create(&agent, entry_with_id("upper", "spiffe://DEV.tether.internal/a", "")).await,
        Code::InvalidArgument,
        "",
    );
    let svid = x509(&agent).await.svids.remove(0);
    assert!(svid.spiffe_id.starts_with(&format!("{DOMAIN_ID}/")));
}

async fn no_special_cases() {
    let agent = TestAgent::start().await;
    let names = ["1.2.3.4", "a..b", "-_.", "256.1.1.1", "localhost", "a"];
    let foreign: Vec<Foreign> = names.iter().map(|name| Foreign::new(name, &agent)).collect();
    for domain in &foreign {
        domain.set(&agent, &domain.bundle()).await;
    }
    federate_with(&agent, &names).await;
    for domain in &foreign {
        let believed = validate(&agent, &domain.token(&agent)).await.unwrap();
        assert_eq!(believed.spiffe_id, domain.workload());
    }
}

async fn segments() {
    let ids = [
        "spiffe://td//a",
        "spiffe://td/a//b",
        "spiffe://td/./a",
        "spiffe://td/a/.",
        "spiffe://td/a/..",
        "spiffe://td/../a",
    ];
    refused_everywhere(&ids).await;
    let (agent, foreign) = Foreign::partner().await;
    for path in ["...", ".a", "a.", "..a/b..", "-", "_"] {
        let id = format!("{}/{path}", foreign.id());
        let believed = validate(&agent, &foreign.token_with(&agent, "sub", json!(id))).await.unwrap();
        assert_eq!(believed.spiffe_id, id);
    }
}

fn id_of_length(length: usize) -> String {
    let start = format!("{DOMAIN_ID}/");
    format!("{start}{}", "a".repeat(length - start.len()))
}

async fn longest() {
    let agent = TestAgent::start().await;
    let id = id_of_length(2048);
    agent.write_entries("long.toml", &entry_with_id("long", &id, "audiences = [\"*\"]")).await;
    let svid = x509(&agent).await.svids.into_iter().find(|svid| svid.spiffe_id == id).expect("it is in the field");
    assert_eq!(Chain::from_der(&svid.x509_svid).unwrap().leaf().uris(), [&id[..]]);
    let token = jwt(&agent, &[AUDIENCE], &id).await.unwrap().remove(0).svid;
    assert_eq!(validate(&agent, &token).await.unwrap().spiffe_id, id);
}

async fn too_long() {
    let agent = TestAgent::start().await;
    refused(create(&agent, entry_with_id("long", &id_of_length(2049), "")).await, Code::InvalidArgument, "2048");
    let template = format!("{}/{{unix.uid}}", id_of_length(2047));
    agent.write_entries("long.toml", &entry_with_id("long", &template, "")).await;
    let ids = x509(&agent).await.svids;
    assert!(ids.iter().all(|svid| svid.spiffe_id.len() < 2048), "the template gives this process nothing");
}

async fn trust_domain_length() {
    let agent = TestAgent::start().await;
    let foreign = Foreign::new(&"a".repeat(255), &agent);
    foreign.federate(&agent).await;
    assert_eq!(validate(&agent, &foreign.token(&agent)).await.unwrap().spiffe_id, foreign.workload());
    let longer = "a".repeat(256);
    refused(set_bundle(&agent, &longer, &foreign.bundle().to_string()).await, Code::InvalidArgument, "255");
    let token = foreign.token_with(&agent, "sub", json!(format!("spiffe://{longer}/workload")));
    refused(validate(&agent, &token).await, Code::InvalidArgument, "SPIFFE ID");
}

async fn comparison() {
    let (agent, foreign) = Foreign::partner().await;
    agent.write_entries("case.toml", &entry("case", "A", "audiences = [\"*\"]")).await;
    assert_eq!(jwt(&agent, &[AUDIENCE], &format!("{DOMAIN_ID}/A")).await.unwrap().len(), 1);
    refused(jwt(&agent, &[AUDIENCE], &format!("{DOMAIN_ID}/a")).await, Code::PermissionDenied, "not an identity");
    for id in ["SPIFFE://partner.example/workload", "spiffe://Partner.example/workload"] {
        let token = foreign.token_with(&agent, "sub", json!(id));
        refused(validate(&agent, &token).await, Code::InvalidArgument, "SPIFFE ID");
    }
}

async fn authority_id() {
    let agent = TestAgent::start().await;
    let svid = x509(&agent).await.svids.remove(0);
    let authorities = X509Authorities::from_der(TrustDomain::parse(DOMAIN).unwrap(), &svid.bundle).unwrap();
    for authority in authorities.certificates() {
        assert_eq!(authority.spiffe_id().unwrap().as_str(), DOMAIN_ID);
    }
    assert!(!published(&agent).await["keys"].as_array().unwrap().is_empty());
}

/// Changes the last byte of the only place where `needle` stands.
fn change(haystack: &[u8], needle: &[u8]) -> Vec<u8> {
    let places: Vec<_> = haystack.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle).collect();
    assert_eq!(places.len(), 1);
    let mut changed = haystack.to_vec();
    changed[places[0].0 + needle.len() - 1] ^= 1;
    changed
}

async fn tampered() {
    let agent = TestAgent::start().await;
    let svid = x509(&agent).await.svids.remove(0);
    let authorities = X509Authorities::from_der(TrustDomain::parse(DOMAIN).unwrap(), &svid.bundle).unwrap();
    let chain = Chain::from_der(&svid.x509_svid).unwrap();
    let _ = verify(&chain, &authorities, agent.clock().now(), &[]).expect("it is sound");
    let (leaf, rest) = (chain.leaf(), &chain.certificates()[1..]);
    for inside in [svid.spiffe_id.as_bytes(), leaf.public_key()] {
        let forged = Certificate::from_der(&change(leaf.der(), inside)).unwrap();
        let forged = Chain::new(std::iter::once(forged).chain(rest.iter().cloned()).collect()).unwrap();
        verify(&forged, &authorities, agent.clock().now(), &[]).expect_err("it is not what was signed");
    }

    let token = jwt(&agent, &[AUDIENCE], "").await.unwrap().remove(0).svid;
    let mut claims = decode(&token).claims;
    claims["sub"] = json!(format!("{DOMAIN_ID}/admin"));
    let parts: Vec<&str> = token.split('.').collect();
    let payload = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims.to_string());
    let forged = format!("{}.{payload}.{}", parts[0], parts[2]);
    refused(validate(&agent, &forged).await, Code::InvalidArgument, "signature");
}

async fn other_domain() {
    let agent = TestAgent::start().await;
    let (a, b) = (Foreign::new("a.example", &agent), Foreign::new("b.example", &agent));
    for foreign in [&a, &b] {
        foreign.set(&agent, &foreign.bundle()).await;
    }
    federate_with(&agent, &["a.example", "b.example"]).await;
    let token = a.key.sign(&header(), &b.claims(&agent));
    refused(validate(&agent, &token).await, Code::InvalidArgument, "");

    let now = agent.clock().now();
    let chain = Chain::from_der(&a.root.leaf(&b.workload(), now, |_| ())).unwrap();
    for foreign in [&a, &b] {
        let domain = TrustDomain::parse(&foreign.domain).unwrap();
        let authorities = X509Authorities::from_der(domain, &foreign.root.der).unwrap();
        verify(&chain, &authorities, now, &[]).expect_err("neither bundle vouches for it");
    }
    SpiffeId::parse(&b.workload()).expect("the ID itself is sound");
}
