//! `tether credential`, against an agent that has three credentials.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::client::fake::Served;
use crate::proto::admin::credentials_server::{Credentials, CredentialsServer};
use crate::proto::admin::*;

use super::{Exit, tether, tether_with};

const SERIAL: &str = "4b0c5d3e8f1a2b3c4d5e6f708192a3b4";
const JTI: &str = "00112233445566778899aabbccddeeff.9f8e7d6c5b4a39281706f5e4d3c2b1a0";

/// A ledger of one certificate and one token, which remembers what it was asked.
#[derive(Clone, Default)]
struct FakeLedger {
    listed: Arc<Mutex<Vec<ListCredentialsRequest>>>,
    revoked: Arc<Mutex<Vec<RevokeCredentialsRequest>>>,
}

impl FakeLedger {
    fn served(&self) -> Served {
        Served::routes(Routes::new(CredentialsServer::new(self.clone())))
    }
}

fn certificate() -> CredentialView {
    CredentialView {
        id: SERIAL.to_owned(),
        kind: "x509".to_owned(),
        spiffe_id: "spiffe://example.org/unit/billing".to_owned(),
        entry: "billing-api".to_owned(),
        owner: "team-billing@example.org".to_owned(),
        instance: "boot/pidfd-1/exe-2-3".to_owned(),
        pid: 4_194_304,
        uid: 1000,
        bind: "process".to_owned(),
        tie: "process boot/pidfd-1/exe-2-3".to_owned(),
        binding: Some(Binding { level: 1, meaning: "key in the workload".to_owned() }),
        custody: "workload".to_owned(),
        authority: "ca-1".to_owned(),
        issued_at: "2026-11-22T11:59:00Z".to_owned(),
        not_after: "2026-11-22T12:14:59Z".to_owned(),
        standing: "stands".to_owned(),
        blast_radius: Some(BlastRadius {
            trusted_by: vec!["example.org".to_owned()],
            may_be_trusted_by: vec!["partner.example".to_owned()],
            ..BlastRadius::default()
        }),
        ..CredentialView::default()
    }
}

fn token() -> CredentialView {
    CredentialView {
        id: JTI.to_owned(),
        kind: "jwt".to_owned(),
        binding: Some(Binding { level: 0, meaning: "bearer".to_owned() }),
        custody: "bearer".to_owned(),
        single_use: true,
        standing: "ended".to_owned(),
        reason: "executable_changed".to_owned(),
        ended_at: "2026-11-22T11:57:00Z".to_owned(),
        last_asked: "2026-11-22T11:56:00Z".to_owned(),
        blast_radius: Some(BlastRadius {
            audiences: vec!["https://pay.example.com".to_owned()],
            trusted_by: vec!["example.org".to_owned()],
            ..BlastRadius::default()
        }),
        ..certificate()
    }
}

const AUDIENCE: &str = "x\x1b]0;pwned\x07 y\nstanding     ended";

fn attackers_token() -> CredentialView {
    let radius = BlastRadius { audiences: vec![AUDIENCE.to_owned()], ..BlastRadius::default() };
    CredentialView { blast_radius: Some(radius), spiffe_id: "spiffe://example.org/\x1b[2K".to_owned(), ..token() }
}

#[tonic::async_trait]
impl Credentials for FakeLedger {
    async fn list(
        &self,
        request: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        let request = request.into_inner();
        let limit = usize::try_from(request.limit).expect("small");
        self.listed.lock().expect("unbroken").push(request);
        let credentials: Vec<_> = [certificate(), token()].into_iter().take(limit).collect();
        Ok(Response::new(ListCredentialsResponse { credentials, total: 2 }))
    }

    async fn show(&self, request: Request<ShowCredentialRequest>) -> Result<Response<CredentialView>, Status> {
        match request.into_inner().id.as_str() {
            "4b0c5d" => Ok(Response::new(certificate())),
            "9f8e7d" => Ok(Response::new(token())),
            "666666" => Ok(Response::new(attackers_token())),
            "denied" => Err(Status::permission_denied(format!("not for the audience `{AUDIENCE}`"))),
            other => Err(Status::not_found(format!("no credential `{other}` in the ledger"))),
        }
    }

    async fn revoke(
        &self,
        request: Request<RevokeCredentialsRequest>,
    ) -> Result<Response<RevokeCredentialsResponse>, Status> {
        let request = request.into_inner();
        let filter = request.filter.clone().unwrap_or_default();
        self.revoked.lock().expect("unbroken").push(request);
        Ok(Response::new(match filter.entry.as_str() {
            "gone" => RevokeCredentialsResponse { already_ended: 2, ..RevokeCredentialsResponse::default() },
            "none" => RevokeCredentialsResponse::default(),
            _ => RevokeCredentialsResponse { revoked: vec![certificate()], total: 1, already_ended: 0 },
        }))
    }
}

#[test]
fn the_list_fits_a_terminal_and_says_when_there_are_more() {
    let ledger = FakeLedger::default();
    let served = ledger.served();
    let done = tether("credential list --all", &served);
    assert_eq!(
        done.data,
        "ID          KIND  SPIFFE ID                          PID      ENTRY        STANDING\n\
         4b0c5d3e8f  x509  spiffe://example.org/unit/billing  4194304  billing-api  14m59s left\n\
         9f8e7d6c5b  jwt   spiffe://example.org/unit/billing  4194304  billing-api  executable_changed 3m ago\n"
    );
    assert_eq!(done.chatter, "");
    assert!(done.data.lines().all(|line| line.len() <= 100));

    let done = tether("credential list --limit 1 --output json", &served);
    assert_eq!(done.chatter, "only the newest 1 of 2: narrow the search, or raise --limit\n");
    let json = done.json();
    assert_eq!((&json["version"], &json["total"]), (&json!(1), &json!(2)));
    assert_eq!(json["credentials"].as_array().map(Vec::len), Some(1));
    for wrong in ["--limit 0", "--limit 100001", "--pid 0", "--kind pgp"] {
        assert_eq!(tether(&format!("credential list {wrong}"), &served).exit, Exit::Usage, "{wrong}");
    }
}

#[test]
fn every_way_to_pick_credentials_reaches_the_agent() {
    let ledger = FakeLedger::default();
    let served = ledger.served();
    let line = "credential list --spiffe-id spiffe://td/* --pid 7 --entry e --owner o --kind wit";
    assert_eq!(tether(line, &served).exit, Exit::Ok);
    let holder = CredentialFilter {
        spiffe_id: "spiffe://td/*".to_owned(),
        pid: 7,
        entry: "e".to_owned(),
        owner: "o".to_owned(),
        kind: "wit".to_owned(),
        ..CredentialFilter::default()
    };
    let listed = ledger.listed.lock().expect("unbroken").clone();
    assert_eq!(listed, [ListCredentialsRequest { filter: Some(holder), all: false, limit: 1000 }]);

    for (line, filter) in [
        ("abcdef", CredentialFilter { id: "abcdef".to_owned(), ..CredentialFilter::default() }),
        ("--serial 4B:0C", CredentialFilter { serial: "4B:0C".to_owned(), ..CredentialFilter::default() }),
        (
            "--jti n.j --kind jwt",
            CredentialFilter { jti: "n.j".to_owned(), kind: "jwt".to_owned(), ..CredentialFilter::default() },
        ),
    ] {
        assert_eq!(tether(&format!("credential revoke {line} --reason leak --dry-run"), &served).exit, Exit::Ok);
        let asked = ledger.revoked.lock().expect("unbroken").pop().expect("asked");
        assert_eq!(asked, RevokeCredentialsRequest { filter: Some(filter), reason: "leak".to_owned(), dry_run: true });
    }
}

#[test]
fn a_credential_is_shown_with_its_holder_and_where_it_is_worth_something() {
    let served = FakeLedger::default().served();
    let done = tether("credential show 4b0c5d", &served);
    assert_eq!(
        done.data,
        format!(
            "id          {SERIAL}\n\
             kind        x509\n\
             SPIFFE ID   spiffe://example.org/unit/billing\n\
             standing    stands until 2026-11-22T12:14:59Z (14m59s left)\n\
             issued      2026-11-22T11:59:00Z (1m ago)\n\
             last asked  never\n\
             entry       billing-api\n\
             owner       team-billing@example.org\n\
             process     4194304 of uid 1000\n\
             instance    boot/pidfd-1/exe-2-3\n\
             bound to    process boot/pidfd-1/exe-2-3\n\
             binding     1: key in the workload\n\
             custody     workload\n\
             authority   ca-1\n\
             trusted by  example.org\n\
             perhaps by  partner.example\n"
        )
    );
    let done = tether("credential show 9f8e7d", &served);
    for expected in [
        "standing     ended at 2026-11-22T11:57:00Z (3m ago): executable_changed\n",
        "accepted by  https://pay.example.com, once\n",
    ] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    let done = tether("credential show nothing", &served);
    assert_eq!((done.exit, done.chatter.as_str()), (Exit::Failure, "error: no credential `nothing` in the ledger\n"));

    let json = tether("credential show 9f8e7d --output json", &served).json();
    let expected = json!({
        "version": 1, "id": JTI, "kind": "jwt", "spiffe_id": "spiffe://example.org/unit/billing",
        "entry": "billing-api", "owner": "team-billing@example.org", "instance": "boot/pidfd-1/exe-2-3",
        "pid": 4_194_304, "uid": 1000, "delegate": null, "bind": "process",
        "tie": "process boot/pidfd-1/exe-2-3",
        "binding": { "level": 0, "meaning": "bearer" }, "custody": "bearer", "exportable": false, "single_use": true,
        "authority": "ca-1", "issued_at": "2026-11-22T11:59:00Z", "not_after": "2026-11-22T12:14:59Z",
        "standing": "ended", "reason": "executable_changed", "ended_at": "2026-11-22T11:57:00Z",
        "last_asked": "2026-11-22T11:56:00Z",
        "blast_radius": {
            "audiences": ["https://pay.example.com"], "trusted_by": ["example.org"], "may_be_trusted_by": [],
        },
    });
    assert_eq!(json, expected);
}

#[test]
fn an_audience_with_escape_sequences_is_shown_in_letters_wherever_it_is_shown() {
    let served = FakeLedger::default().served();
    let done = tether("credential show 666666", &served);
    assert!(
        done.data.contains("accepted by  x\\u{1b}]0;pwned\\u{7} y\\u{a}standing     ended, once\n"),
        "{}",
        done.data
    );
    assert!(done.data.contains("spiffe://example.org/\\u{1b}[2K\n"), "{}", done.data);
    let json = tether("credential show 666666 --output json", &served).json();
    assert_eq!(json["blast_radius"]["audiences"], json!([AUDIENCE]), "programs get the very audience");

    let done = tether("credential show denied", &served);
    let expected = "error: denied: not for the audience `x\\u{1b}]0;pwned\\u{7} y\\u{a}standing     ended`;";
    assert!(done.chatter.starts_with(expected), "{}", done.chatter);
    assert_eq!(done.chatter.lines().count(), 1);
}

#[test]
fn revoking_says_how_much_it_ended_and_that_it_does_not_stop_issuing() {
    let served = FakeLedger::default().served();
    let done = tether("credential revoke 4b0c5d", &served);
    assert_eq!(done.exit, Exit::Ok);
    assert!(done.data.contains("4b0c5d3e8f "), "{}", done.data);
    assert!(done.chatter.starts_with("revoked 1 credential\n"), "{}", done.chatter);
    assert!(done.chatter.contains("tether entry update ID --disabled true"), "{}", done.chatter);
    let json = tether("credential revoke 4b0c5d --dry-run --output json", &served).json();
    assert_eq!((&json["dry_run"], &json["total"], &json["already_ended"]), (&json!(true), &json!(1), &json!(0)));
    assert_eq!(json["revoked"][0]["id"], Value::from(SERIAL));

    let done = tether("credential revoke --entry gone", &served);
    assert_eq!((done.exit, done.data.as_str()), (Exit::Ok, ""));
    assert_eq!(done.chatter, "revoked 0 credentials; 2 had ended before\n");
    let done = tether("credential revoke --entry none", &served);
    assert_eq!(done.exit, Exit::Failure, "a misspelt name must not look like success");
    assert!(done.chatter.contains("nothing was revoked"), "{}", done.chatter);
}

#[test]
fn revoking_everything_by_leaving_the_choice_out_is_not_possible() {
    for line in ["", "--reason x", "--dry-run", "abc --serial d", "abc --jti d", "--serial a --jti b"] {
        assert_eq!(tether_with(&format!("credential revoke {line}"), &[], "").exit, Exit::Usage, "{line}");
    }
}
