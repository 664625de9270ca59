//! Where the standard contradicts itself or leaves a choice: what tether chose.

use serde_json::json;
use x509_parser::extensions::GeneralName;

use super::x509_issuer::{parse, split};
use crate::support::foreign::Foreign;
use crate::support::forge::{Ca, uri};
use crate::support::{run, x509_bundles};
use crate::table::{Rule, Shown};

pub const RULES: &[Rule] = &[
    Rule {
        id: "AMB-01",
        binds: "iss,val",
        says: "upper case in an ID is refused, never folded",
        shown: Shown::As("ID-14"),
    },
    Rule {
        id: "AMB-02",
        binds: "pub",
        says: "no wit-svid keys are published while WIT is off",
        shown: Shown::As("STA-01"),
    },
    Rule {
        id: "AMB-03",
        binds: "iss,val",
        says: "our CA's ID has no slash at its end, and a foreign root's own names are not judged",
        shown: Shown::Test(|| run(foreign_root_names())),
    },
    Rule {
        id: "AMB-04",
        binds: "end",
        says: "a profile that is switched off is Unimplemented",
        shown: Shown::As("WL-40"),
    },
    Rule {
        id: "AMB-05",
        binds: "cli",
        says: "what a broker does after PermissionDenied",
        shown: Shown::NotOurs("there is no broker endpoint"),
    },
    Rule { id: "AMB-06", binds: "end", says: "the service is named SpiffeWorkloadAPI", shown: Shown::As("EP-18") },
    Rule {
        id: "AMB-07",
        binds: "iss",
        says: "the signing authority carries an ID, as a MUST",
        shown: Shown::As("ID-15"),
    },
    Rule { id: "AMB-08", binds: "pub", says: "the member is named spiffe_refresh_hint", shown: Shown::As("BUN-09") },
    Rule { id: "AMB-09", binds: "end", says: "reflection and health need the header too", shown: Shown::As("EP-06") },
    Rule {
        id: "AMB-10",
        binds: "val",
        says: "aud is a string or an array, exp any NumericDate",
        shown: Shown::As("JWT-21"),
    },
    Rule {
        id: "AMB-11",
        binds: "end",
        says: "a trust domain without token keys has an empty set, one without X.509 roots no bundle",
        shown: Shown::As("X509-26"),
    },
];

async fn foreign_root_names() {
    let (agent, foreign) = Foreign::partner().await;
    let names = vec![uri("spiffe://partner.example/"), uri("https://partner.example")];
    let root = Ca::root_with("root", agent.clock().now(), |root| root.subject_alt_names = names);
    foreign.set(&agent, &json!({ "keys": [root.jwk()] })).await;
    let bundles = x509_bundles(&agent).await.bundles;
    let [der] = &split(&bundles[&foreign.id()])[..] else { panic!("it is there") };
    let names = parse(der).subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names[0], GeneralName::URI("spiffe://partner.example/"));
}
