//! The commands that talk to the admin socket.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::client::fake::Served;
use crate::proto::admin::agent_server::{Agent, AgentServer};
use crate::proto::admin::authorities_server::{Authorities, AuthoritiesServer};
use crate::proto::admin::bundles_server::{Bundles, BundlesServer};
use crate::proto::admin::entries_server::{Entries, EntriesServer};
use crate::proto::admin::*;

use super::{Exit, tether, tether_with};

/// An admin API that knows one entry, and remembers what it was asked to write.
#[derive(Clone, Default)]
struct FakeAdmin {
    written: Arc<Mutex<Vec<String>>>,
}

fn entry(toml: &str) -> EntryView {
    EntryView {
        id: "billing".to_owned(),
        spiffe_id: "spiffe://example.org/billing".to_owned(),
        r#match: vec!["unix:uid:1000".to_owned()],
        owner: "team@example.org".to_owned(),
        origin: "store".to_owned(),
        revision: 7,
        toml: toml.to_owned(),
        ..EntryView::default()
    }
}

const ENTRY: &str =
    "[[entry]]\nid = \"billing\"\nspiffe_id = \"spiffe://example.org/billing\"\nmatch = [\"unix:uid:1000\"]\n";

impl FakeAdmin {
    fn served(&self) -> Served {
        let routes = Routes::new(EntriesServer::new(self.clone()))
            .add_service(AgentServer::new(self.clone()))
            .add_service(AuthoritiesServer::new(self.clone()))
            .add_service(BundlesServer::new(self.clone()));
        Served::routes(routes)
    }

    fn write(&self, what: impl Into<String>) {
        self.written.lock().expect("unbroken").push(what.into());
    }

    fn written(&self) -> Vec<String> {
        self.written.lock().expect("unbroken").clone()
    }
}

#[tonic::async_trait]
impl Entries for FakeAdmin {
    async fn list(&self, _: Request<ListEntriesRequest>) -> Result<Response<ListEntriesResponse>, Status> {
        Ok(Response::new(ListEntriesResponse { entries: vec![entry(ENTRY)] }))
    }
    async fn get(&self, request: Request<GetEntryRequest>) -> Result<Response<EntryView>, Status> {
        match request.into_inner().id.as_str() {
            "billing" => Ok(Response::new(entry(ENTRY))),
            other => Err(Status::not_found(format!("there is no entry `{other}`"))),
        }
    }
    async fn create(&self, request: Request<CreateEntryRequest>) -> Result<Response<EntryView>, Status> {
        let toml = request.into_inner().toml;
        self.write(toml.clone());
        Ok(Response::new(entry(&toml)))
    }
    async fn update(&self, request: Request<UpdateEntryRequest>) -> Result<Response<EntryView>, Status> {
        let UpdateEntryRequest { toml, revision } = request.into_inner();
        self.write(format!("revision {revision}\n{toml}"));
        Ok(Response::new(entry(&toml)))
    }
    async fn delete(&self, _: Request<DeleteEntryRequest>) -> Result<Response<DeleteEntryResponse>, Status> {
        Err(Status::permission_denied("deleting entries needs the role operator"))
    }
    async fn apply(&self, request: Request<ApplyEntriesRequest>) -> Result<Response<ApplyEntriesResponse>, Status> {
        let ApplyEntriesRequest { toml, dry_run } = request.into_inner();
        self.write(format!("dry run {dry_run}\n{toml}"));
        Ok(Response::new(ApplyEntriesResponse { created: 1, updated: 2, unchanged: 3 }))
    }
}

#[tonic::async_trait]
impl Agent for FakeAdmin {
    type BackupStream = tonic::codegen::BoxStream<BackupChunk>;

    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::unimplemented("nothing here has keys"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let json = json!({
            "version": 1,
            "trust_domain": "example.org",
            "started_at": "2026-11-22T11:59:00Z",
            "parts": { "entries": "ok" },
            "authorities": [{ "id": "a", "not_after": null }],
            "weaker": [],
        });
        Ok(Response::new(StatusResponse { json: json.to_string() }))
    }
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let pid = request.into_inner().pid;
        if pid == OF_AN_ATTACKER {
            return Ok(Response::new(attackers_explanation()));
        }
        Ok(Response::new(ExplainResponse {
            pid,
            instance: "boot/pidfd-1".to_owned(),
            weak: "the kernel is old".to_owned(),
            selectors: vec!["unix:uid:1000".to_owned()],
            gaps: vec!["systemd: no answer".to_owned()],
            entries: vec![EntryVerdict {
                entry_id: "billing".to_owned(),
                spiffe_id: "spiffe://example.org/billing".to_owned(),
                verdict: "no match".to_owned(),
                reasons: vec!["`unix:user:billing` does not hold".to_owned()],
                origin: "store".to_owned(),
            }],
            notes: vec![],
        }))
    }
    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        let refused =
            ReloadedSource { source: "entries".to_owned(), ok: false, messages: vec!["/e/a.toml:1:2: no".to_owned()] };
        Ok(Response::new(ReloadResponse { sources: vec![refused] }))
    }
    async fn log_level(&self, request: Request<LogLevelRequest>) -> Result<Response<LogLevelResponse>, Status> {
        let level = Some(request.into_inner().level).filter(|level| !level.is_empty());
        Ok(Response::new(LogLevelResponse { level: level.unwrap_or_else(|| "info".to_owned()) }))
    }
}

#[tonic::async_trait]
impl Authorities for FakeAdmin {
    async fn show(&self, _: Request<ShowAuthoritiesRequest>) -> Result<Response<ShowAuthoritiesResponse>, Status> {
        let authority = AuthorityView {
            id: "k1".to_owned(),
            kind: "jwt".to_owned(),
            state: "prepared".to_owned(),
            not_before: "2026-11-22T12:00:00Z".to_owned(),
            not_after: "2026-12-22T12:00:00Z".to_owned(),
            activates_at: "2026-11-22T12:00:10Z".to_owned(),
        };
        Ok(Response::new(ShowAuthoritiesResponse { authorities: vec![authority], sequence: 3 }))
    }
    async fn rotate(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<ShowAuthoritiesResponse>, Status> {
        let RotateAuthorityRequest { kind, now } = request.get_ref();
        self.write(format!("rotate {kind} {now}"));
        Authorities::show(self, Request::new(ShowAuthoritiesRequest {})).await
    }
    async fn revoke(&self, _: Request<RevokeAuthorityRequest>) -> Result<Response<ShowAuthoritiesResponse>, Status> {
        Err(Status::not_found("there is no authority `x`"))
    }
}

#[tonic::async_trait]
impl Bundles for FakeAdmin {
    async fn show(&self, _: Request<ShowBundlesRequest>) -> Result<Response<ShowBundlesResponse>, Status> {
        let view = |trust_domain: &str, own| BundleView {
            trust_domain: trust_domain.to_owned(),
            jwks: json!({ "keys": [] }).to_string(),
            pem: format!("PEM of {trust_domain}\n"),
            own,
            crl_pem: if own { vec!["CRL 1\n".to_owned(), "CRL 2\n".to_owned()] } else { Vec::new() },
            jwt_issuer: String::new(),
        };
        Ok(Response::new(ShowBundlesResponse {
            bundles: vec![view("partner.example", false), view("example.org", true)],
        }))
    }
    async fn set(&self, request: Request<SetBundleRequest>) -> Result<Response<BundleView>, Status> {
        let SetBundleRequest { trust_domain, content } = request.into_inner();
        self.write(format!("{trust_domain} {content}"));
        Ok(Response::new(BundleView { trust_domain, jwks: "{\"keys\":[]}".to_owned(), ..BundleView::default() }))
    }
    async fn delete(&self, _: Request<DeleteBundleRequest>) -> Result<Response<DeleteBundleResponse>, Status> {
        Ok(Response::new(DeleteBundleResponse {}))
    }
}

#[test]
fn entries_are_listed_shown_and_missing_ones_named() {
    let served = FakeAdmin::default().served();
    let list = tether("entry list", &served);
    assert_eq!(
        list.data,
        "ID       SPIFFE ID                     MATCH          FROM\n\
         billing  spiffe://example.org/billing  unix:uid:1000  store\n"
    );
    let json = tether("entry list --output json", &served).json();
    let expected = json!({
        "id": "billing", "spiffe_id": "spiffe://example.org/billing", "match": ["unix:uid:1000"], "unless": [],
        "owner": "team@example.org", "hint": null, "origin": "store", "revision": 7, "created_at": null, "toml": ENTRY,
    });
    assert_eq!(json, json!({ "version": 1, "entries": [expected] }));
    assert_eq!(tether("entry show billing", &served).data, ENTRY);
    let done = tether("entry show other", &served);
    assert_eq!((done.exit, done.chatter.as_str()), (Exit::Failure, "error: there is no entry `other`\n"));
}

#[test]
fn an_entry_is_created_from_flags_and_updated_at_the_revision_that_was_read() {
    let admin = FakeAdmin::default();
    let served = admin.served();
    let line = "entry create --id x --spiffe-id spiffe://example.org/x --match unix:uid:1 --match unix:gid:2 \
                --audience * --may-act-for spiffe://example.org/agent/* --single-use true --exportable true";
    assert_eq!(tether(line, &served).exit, Exit::Ok);
    assert_eq!(
        tether("entry update billing --hint internal --match unix:uid:2 --disabled true", &served).exit,
        Exit::Ok
    );
    let written: Vec<String> = admin.written();
    let created: toml::Table = written[0].parse().expect("TOML");
    let expected = "[[entry]]\nid = \"x\"\nspiffe_id = \"spiffe://example.org/x\"\n\
                    match = [\"unix:uid:1\", \"unix:gid:2\"]\naudiences = [\"*\"]\n\
                    may_act_for = [\"spiffe://example.org/agent/*\"]\nsingle_use = true\nexportable = true\n";
    assert_eq!(created, expected.parse().expect("TOML"));
    let updated = written[1].strip_prefix("revision 7\n").expect("the revision is sent");
    let expected = "[[entry]]\nid = \"billing\"\nspiffe_id = \"spiffe://example.org/billing\"\n\
                    match = [\"unix:uid:2\"]\nhint = \"internal\"\ndisabled = true\n";
    assert_eq!(updated.parse::<toml::Table>().expect("TOML"), expected.parse().expect("TOML"));

    let done = tether("entry update billing", &served);
    assert_eq!(done.exit, Exit::Usage, "{}", done.chatter);
    assert_eq!(tether("entry create --file - --hint x", &served).exit, Exit::Usage);
}

#[test]
fn a_file_is_applied_whole_and_a_dry_run_says_so() {
    let admin = FakeAdmin::default();
    let served = admin.served();
    let line = format!("entry apply --dry-run - --socket {}", served.path().display());
    let done = tether_with(&line, &[], ENTRY);
    assert_eq!(done.data, "1 would be created, 2 would be updated, 3 unchanged\n");
    assert_eq!(admin.written(), [format!("dry run true\n{ENTRY}")]);
}

#[test]
fn a_role_that_is_missing_is_a_denial_with_where_roles_come_from() {
    let served = FakeAdmin::default().served();
    let done = tether("entry delete billing", &served);
    assert_eq!(done.exit, Exit::Denied);
    assert!(done.chatter.contains("needs the role operator") && done.chatter.contains("[admin]"), "{}", done.chatter);
}

#[test]
fn spire_entries_need_a_choice_of_parents_and_an_owner_and_arrive_as_ours() {
    let spire = json!({ "entries": [{
        "id": "one",
        "spiffe_id": { "trust_domain": "example.org", "path": "/web" },
        "parent_id": { "trust_domain": "example.org", "path": "/node" },
        "selectors": [{ "type": "unix", "value": "uid:1000" }],
    }], "next_page_token": "" })
    .to_string();
    let admin = FakeAdmin::default();
    let served = admin.served();
    let socket = format!("--socket {}", served.path().display());
    for missing in ["--owner o@example.org", "--all-parents"] {
        let done = tether_with(&format!("entry import --from spire - {missing} {socket}"), &[], &spire);
        assert_eq!(done.exit, Exit::Usage, "{}", done.chatter);
    }
    let choice = "--parent-id spiffe://example.org/node --owner o@example.org";
    let done = tether_with(&format!("entry import --from spire - {choice} {socket}"), &[], &spire);
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    assert!(done.chatter.contains("warning: "), "{}", done.chatter);
    let written = admin.written();
    assert!(written[0].contains("spiffe://example.org/web") && written[0].contains("o@example.org"), "{written:?}");

    let elsewhere = "--all-parents --owner o@example.org --trust-domain other.example --print";
    let done = tether_with(&format!("entry import --from spire - {elsewhere}"), &[], &spire);
    assert_eq!(done.exit, Exit::Invalid, "an entry of another trust domain");
    assert!(done.chatter.contains("nothing was imported\nentry `one`: "), "{}", done.chatter);
}

#[test]
fn status_is_shown_whatever_is_in_it_and_passed_on_as_json() {
    let served = FakeAdmin::default().served();
    let done = tether("status", &served);
    for expected in [
        "trust domain  example.org\n",
        "started at    2026-11-22T11:59:00Z (1m ago)\n",
        "PARTS\nentries  ok\n",
        "WEAKER\nnone\n",
    ] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    assert_eq!(tether("status --output json", &served).json()["trust_domain"], "example.org");
}

#[test]
fn explain_says_which_selector_failed_and_what_could_not_be_known() {
    let served = FakeAdmin::default().served();
    let done = tether("explain --pid 42", &served);
    for expected in [
        "process 42, instance boot/pidfd-1\n",
        "weak: the kernel is old\n",
        "not known: systemd: no answer\n",
        "no match: billing gives spiffe://example.org/billing (store)\n      `unix:user:billing` does not hold\n",
    ] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    assert_eq!(done.chatter, "");
    assert!(tether("explain", &served).chatter.contains("--pid PID"));
    let json = tether("explain --pid 42 --output json", &served).json();
    assert_eq!((&json["pid"], &json["entries"][0]["verdict"]), (&json!(42), &json!("no match")));
    assert!(tether_with("explain --kinds", &[], "").data.contains("unix:uid\n"));
}

/// The process of somebody who chose the path of its program with care.
const OF_AN_ATTACKER: i32 = 13;
const PATH: &str = "unix:path:/tmp/e\x1b[31mX\x1b]0;pwned\x07/s\nselectors\n  unix:uid:0";

fn attackers_explanation() -> ExplainResponse {
    ExplainResponse {
        pid: OF_AN_ATTACKER,
        instance: "boot/pidfd-13".to_owned(),
        weak: String::new(),
        selectors: vec![PATH.to_owned()],
        gaps: vec![format!("it cannot be known: {PATH}")],
        entries: vec![EntryVerdict {
            entry_id: "billing".to_owned(),
            spiffe_id: "spiffe://example.org/billing".to_owned(),
            verdict: "no match".to_owned(),
            reasons: vec![format!("`{PATH}` is what it has")],
            origin: "store".to_owned(),
        }],
        notes: vec![PATH.to_owned()],
    }
}

#[test]
fn a_path_with_escape_sequences_is_explained_in_letters() {
    let served = FakeAdmin::default().served();
    let done = tether(&format!("explain --pid {OF_AN_ATTACKER}"), &served);
    assert!(done.data.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", done.data);
    let shown = r"unix:path:/tmp/e\u{1b}[31mX\u{1b}]0;pwned\u{7}/s\u{a}selectors\u{a}  unix:uid:0";
    assert_eq!(done.data.matches(shown).count(), 4, "{}", done.data);
    assert_eq!(done.data.lines().filter(|line| *line == "selectors").count(), 1, "{}", done.data);
    let json = tether(&format!("explain --pid {OF_AN_ATTACKER} --output json"), &served).json();
    assert_eq!(json["selectors"], json!([PATH]), "programs get the very path");
}

#[test]
fn a_reload_that_was_refused_fails_with_every_mistake() {
    let served = FakeAdmin::default().served();
    let done = tether("agent reload", &served);
    assert_eq!(done.exit, Exit::Invalid);
    assert_eq!(done.data, "entries: refused\n  /e/a.toml:1:2: no\n");
}

#[test]
fn the_log_level_is_shown_changed_and_checked_before_it_is_sent() {
    let served = FakeAdmin::default().served();
    assert_eq!(tether("log level", &served).data, "info\n");
    assert_eq!(tether("log level info,tether::peer=debug", &served).data, "info,tether::peer=debug\n");
    assert_eq!(tether("log level loud", &served).exit, Exit::Usage);
}

#[test]
fn authorities_and_bundles_are_shown_changed_and_exported() {
    let admin = FakeAdmin::default();
    let served = admin.served();
    let done = tether("authority show", &served);
    assert!(done.data.contains("prepared (signs from 2026-11-22T12:00:10Z)"), "{}", done.data);
    assert_eq!(tether("authority rotate --kind x509-root --now --output json", &served).json()["sequence"], 3);
    assert_eq!(tether("authority revoke x", &served).exit, Exit::Failure);

    assert_eq!(tether("bundle export --format pem", &served).data, "PEM of example.org\n");
    assert_eq!(tether("bundle export partner.example", &served).data, "{\"keys\":[]}\n");
    assert_eq!(tether("bundle export --format crl", &served).data, "CRL 1\nCRL 2\n");
    let nameless = tether("bundle export --oidc /nowhere", &served);
    assert_eq!(nameless.exit, Exit::Failure);
    assert!(nameless.chatter.contains("authority.jwt_issuer"), "{}", nameless.chatter);
    let foreign = tether("bundle export partner.example --format crl", &served);
    assert_eq!(foreign.exit, Exit::Failure);
    assert!(foreign.chatter.contains("no revocation lists of `partner.example`"), "{}", foreign.chatter);
    let line = format!("bundle set partner.example - --socket {}", served.path().display());
    assert_eq!(tether_with(&line, &[], "content").exit, Exit::Ok);
    assert_eq!(tether("bundle delete partner.example", &served).exit, Exit::Ok);
    let shown = tether("bundle show --output json", &served).json();
    assert_eq!((&shown["bundles"][1]["own"], &shown["bundles"][0]["own"]), (&json!(true), &json!(false)));
    assert_eq!(admin.written(), ["rotate x509-root true", "partner.example content"]);
}
