use std::collections::BTreeMap;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::base::clock::Clock;
use crate::client::fake::{Documents, FakeWorkloadApi, NOW, Served};
use crate::proto::admin::agent_server::{Agent, AgentServer};
use crate::proto::admin::authorities_server::{Authorities, AuthoritiesServer};
use crate::proto::admin::bundles_server::{Bundles, BundlesServer};
use crate::proto::admin::entries_server::{Entries, EntriesServer};
use crate::proto::admin::*;
use crate::proto::workload::{JwtsvidResponse, ValidateJwtsvidResponse, X509svidResponse};

use super::*;

/// What a command did.
struct Done {
    exit: Exit,
    data: String,
    chatter: String,
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}{}", self.data, self.chatter))
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("unbroken").clone()).expect("text")
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("unbroken").write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `tether` with `line` as its arguments, on a host with nothing installed.
fn tether_with(line: &str, env: &[(&str, &str)], input: &str) -> Done {
    let (data, chatter) = (Captured::default(), Captured::default());
    let host = Host {
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
        uid: nix::unistd::geteuid().as_raw(),
        input: Box::new(Cursor::new(input.to_owned())),
        clock: Clock::manual(NOW).0,
        root: Some(PathBuf::from("/nonexistent")),
    };
    let arguments = ["tether"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    let exit = run(arguments, host, Output::captured(data.clone(), chatter.clone()));
    Done { exit, data: data.text(), chatter: chatter.text() }
}

fn tether(line: &str, served: &Served) -> Done {
    tether_with(&format!("{line} --socket {}", served.path().display()), &[], "")
}

fn workload(fill: impl FnOnce(&mut crate::client::fake::Script)) -> Served {
    let fake = FakeWorkloadApi::default();
    fill(&mut fake.script());
    Served::workload_api(fake)
}

fn two_identities(td: &Documents) -> X509svidResponse {
    let partner = Documents::of("partner.example");
    X509svidResponse {
        svids: vec![td.x509("/a", "internal"), td.x509("/b", "")],
        federated_bundles: [(partner.domain_id(), partner.bundle().into())].into(),
        ..X509svidResponse::default()
    }
}

#[test]
fn fetch_x509_prints_what_scripts_rely_on() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let done = tether("fetch x509 --output json", &served);
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let json = done.json();
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["crl_pem", "federated_bundles", "svids", "version"]);
    let svid = &json["svids"][0];
    assert_eq!(
        keys(svid),
        ["bundle_pem", "hint", "not_after", "not_before", "serial", "spiffe_id", "x509_svid_key_pem", "x509_svid_pem"]
    );
    assert_eq!((&json["version"], &svid["spiffe_id"]), (&json!(1), &json!("spiffe://example.org/a")));
    assert_eq!((&svid["hint"], &json["svids"][1]["hint"]), (&json!("internal"), &Value::Null));
    assert_eq!(svid["not_after"], "2026-11-22T13:00:00Z");
    for (field, label) in
        [("x509_svid_pem", "CERTIFICATE"), ("x509_svid_key_pem", "PRIVATE KEY"), ("bundle_pem", "CERTIFICATE")]
    {
        let text = svid[field].as_str().expect("text");
        assert!(text.starts_with(&format!("-----BEGIN {label}-----\n")), "{text}");
    }
    assert_eq!(keys(&json["federated_bundles"]), ["partner.example"]);
    assert_eq!(done.data.matches('\n').count(), 1, "one object a line");
}

#[test]
fn fetch_x509_tells_a_person_id_hint_and_expiry_and_keeps_the_key_to_itself() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let done = tether("fetch x509", &served);
    for expected in [
        "SPIFFE ID  spiffe://example.org/a\n",
        "hint       internal\n",
        "expires    2026-11-22T13:00:00Z (1h left)\n",
        "bundle     example.org (1 authority)\n",
        "federated  partner.example (1 authority)\n",
    ] {
        assert!(done.data.contains(expected), "{}", done.data);
    }
    assert!(!done.data.contains("PRIVATE KEY"));
    assert!(done.chatter.contains("--write DIR"), "{}", done.chatter);
}

#[test]
fn fetch_x509_writes_files_with_their_modes_and_says_how_long_they_work() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let dir = tempfile::tempdir().expect("a directory");
    let target = dir.path().join("out");
    let line = format!("fetch x509 --spiffe-id spiffe://example.org/b --write {}", target.display());
    let done = tether(&line, &served);
    assert_eq!((done.exit, done.data.as_str()), (Exit::Ok, ""), "{}", done.chatter);
    for (name, mode) in [("svid.pem", 0o644), ("svid_key.pem", 0o600), ("bundle.pem", 0o644)] {
        let meta = std::fs::metadata(target.join(name)).expect(name);
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    let chain = crate::x509::Chain::from_pem(&std::fs::read(target.join("svid.pem")).expect("there")).expect("PEM");
    assert_eq!(chain.leaf().svid_id().expect("an SVID").as_str(), "spiffe://example.org/b");
    assert!(done.chatter.contains("for whoever reads them until 2026-11-22T13:00:00Z"), "{}", done.chatter);
}

#[test]
fn an_identity_the_caller_does_not_have_is_named_with_those_it_has() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let done = tether("fetch x509 --spiffe-id spiffe://example.org/c", &served);
    assert_eq!(done.exit, Exit::NoIdentity);
    assert!(done.chatter.contains("`spiffe://example.org/a`, `spiffe://example.org/b`"), "{}", done.chatter);
}

#[test]
fn fetch_jwt_prints_the_bare_token_or_the_document() {
    let td = Documents::of("example.org");
    let answer = || JwtsvidResponse { svids: vec![td.jwt("/a", "demo"), td.jwt("/b", "demo")] };
    let served = workload(|script| script.jwt.extend([Ok(answer()), Ok(answer())]));
    let bare = tether("fetch jwt --audience demo", &served);
    assert_eq!(bare.data.trim_end().split('.').count(), 3, "{}", bare.data);
    assert_eq!(bare.data.lines().count(), 1, "one token, for $(...)");
    assert!(bare.chatter.contains("one more identity"), "{}", bare.chatter);
    let document = tether("fetch jwt --audience demo --output json", &served).json();
    assert_eq!(document["version"], 1);
    let svid = &document["svids"][1];
    assert_eq!((&svid["spiffe_id"], &svid["hint"]), (&json!("spiffe://example.org/b"), &Value::Null));
    assert_eq!(svid["expires_at"], "2026-11-22T12:05:00Z");
    assert!(svid["token"].is_string());
}

#[test]
fn what_the_agent_answers_becomes_the_exit_code() {
    let denied = |reason: &str| {
        let mut status = Status::permission_denied("audience `demo` is not allowed");
        status.metadata_mut().insert(crate::client::DENIAL_METADATA, reason.parse().expect("ascii"));
        status
    };
    let cases = [
        (Status::permission_denied("no identity issued"), Exit::NoIdentity, "tether explain"),
        (denied("audience"), Exit::Denied, "audience `demo` is not allowed"),
        (Status::unavailable("starting"), Exit::Unreachable, "not ready: starting"),
        (Status::invalid_argument("`audience` is empty"), Exit::Invalid, "`audience` is empty"),
        (Status::unimplemented("no"), Exit::Failure, "does not offer"),
        (Status::internal("broken"), Exit::Failure, "broken"),
    ];
    for (status, exit, text) in cases {
        let served = workload(|script| script.jwt.push_back(Err(status)));
        let done = tether("fetch jwt --audience demo", &served);
        assert_eq!((done.exit, done.data.as_str()), (exit, ""), "{}", done.chatter);
        assert!(done.chatter.starts_with("error: ") && done.chatter.contains(text), "{}", done.chatter);
    }
}

#[test]
fn a_token_is_validated_from_standard_input_and_an_invalid_one_has_its_own_exit_code() {
    let number = |n| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(n)) };
    let claims = prost_types::Struct { fields: [("exp".to_owned(), number(1_795_349_100.0))].into() };
    let valid = ValidateJwtsvidResponse { spiffe_id: "spiffe://example.org/a".to_owned(), claims: Some(claims) };
    let served = workload(|script| {
        script.validate.extend([Ok(valid.clone()), Ok(valid), Err(Status::invalid_argument("the signature is wrong"))]);
    });
    let socket = format!("--socket {}", served.path().display());
    let done = tether_with(&format!("validate jwt --audience demo --output json {socket}"), &[], "a.b.c\n");
    let expected = json!({ "version": 1, "spiffe_id": "spiffe://example.org/a", "claims": { "exp": 1_795_349_100 } });
    assert_eq!(done.json(), expected);
    let done = tether_with(&format!("validate jwt --audience demo - {socket}"), &[], "a.b.c\n");
    assert!(done.data.starts_with("SPIFFE ID  spiffe://example.org/a\nexp        2026-11-22T"), "{}", done.data);
    let done = tether("validate jwt --audience demo a.b.c", &served);
    assert_eq!(done.exit, Exit::Invalid);
    assert!(done.chatter.contains("not valid for `demo`: the signature is wrong"), "{}", done.chatter);
}

#[test]
fn the_named_socket_wins_over_the_environment_and_a_wrong_one_is_explained() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let uri = served.uri();
    let done = tether_with("fetch x509", &[("SPIFFE_ENDPOINT_SOCKET", uri.as_str())], "");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let env = [("SPIFFE_ENDPOINT_SOCKET", uri.as_str())];
    let done = tether_with("fetch x509 --socket /nonexistent/socket", &env, "");
    assert_eq!(done.exit, Exit::Unreachable);
    assert!(done.chatter.contains("`unix:///nonexistent/socket`"), "{}", done.chatter);

    let cases = [
        ("fetch x509", "SPIFFE_ENDPOINT_SOCKET", "unix://tmp/x", "write three slashes"),
        ("fetch x509", "SPIFFE_ENDPOINT_SOCKET", "/tmp/x", "neither the scheme"),
        ("status", "TETHER_ADMIN_SOCKET", "unix://tmp/x", "write three slashes"),
    ];
    for (line, variable, value, text) in cases {
        let done = tether_with(line, &[(variable, value)], "");
        assert_eq!(done.exit, Exit::Usage, "{value}");
        assert!(done.chatter.contains(variable) && done.chatter.contains(text), "{}", done.chatter);
    }
}

#[test]
fn without_a_named_socket_a_dev_directory_counts_only_when_it_is_private() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let runtime = tempfile::tempdir().expect("a directory");
    let dev = runtime.path().join("tether-dev");
    std::fs::create_dir_all(dev.join("workload")).expect("created");
    std::os::unix::fs::symlink(served.path(), dev.join("workload/workload.sock")).expect("linked");
    let env = [("XDG_RUNTIME_DIR", runtime.path().to_str().expect("text"))];
    let mode = |mode| std::fs::set_permissions(&dev, std::fs::Permissions::from_mode(mode)).expect("chmod");

    mode(0o755);
    let done = tether_with("fetch x509", &env, "");
    assert_eq!(done.exit, Exit::Unreachable, "others could have put a socket there");
    assert!(done.chatter.contains("tether agent run --dev"), "{}", done.chatter);
    mode(0o700);
    let done = tether_with("fetch x509", &env, "");
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
}

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
        Ok(Response::new(ExplainResponse {
            pid: request.into_inner().pid,
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
        };
        Ok(Response::new(ShowBundlesResponse {
            bundles: vec![view("partner.example", false), view("example.org", true)],
        }))
    }
    async fn set(&self, request: Request<SetBundleRequest>) -> Result<Response<BundleView>, Status> {
        let SetBundleRequest { trust_domain, content } = request.into_inner();
        self.write(format!("{trust_domain} {content}"));
        Ok(Response::new(BundleView { trust_domain, jwks: "{\"keys\":[]}".to_owned(), pem: String::new(), own: false }))
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
                --audience * --exportable true";
    assert_eq!(tether(line, &served).exit, Exit::Ok);
    assert_eq!(tether("entry update billing --hint internal --match unix:uid:2", &served).exit, Exit::Ok);
    let written: Vec<String> = admin.written();
    let created: toml::Table = written[0].parse().expect("TOML");
    let expected = "[[entry]]\nid = \"x\"\nspiffe_id = \"spiffe://example.org/x\"\n\
                    match = [\"unix:uid:1\", \"unix:gid:2\"]\naudiences = [\"*\"]\nexportable = true\n";
    assert_eq!(created, expected.parse().expect("TOML"));
    let updated = written[1].strip_prefix("revision 7\n").expect("the revision is sent");
    let expected = "[[entry]]\nid = \"billing\"\nspiffe_id = \"spiffe://example.org/billing\"\n\
                    match = [\"unix:uid:2\"]\nhint = \"internal\"\n";
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
    let line = format!("bundle set partner.example - --socket {}", served.path().display());
    assert_eq!(tether_with(&line, &[], "content").exit, Exit::Ok);
    assert_eq!(tether("bundle delete partner.example", &served).exit, Exit::Ok);
    let shown = tether("bundle show --output json", &served).json();
    assert_eq!((&shown["bundles"][1]["own"], &shown["bundles"][0]["own"]), (&json!(true), &json!(false)));
    assert_eq!(admin.written(), ["rotate x509-root true", "partner.example content"]);
}

#[test]
fn check_lists_the_mistakes_of_configuration_and_entries_with_their_places() {
    let dir = tempfile::tempdir().expect("a directory");
    let entries = dir.path().join("entries.d");
    std::fs::create_dir(&entries).expect("created");
    let file = dir.path().join("tether.toml");
    let check = |text: &str, output: &str| {
        std::fs::write(&file, text).expect("written");
        tether_with(&format!("agent check --config {} --output {output}", file.display()), &[], "")
    };
    let done = check("trust_domain = \"example.org\"\n[svid]\nx509_tll = \"1m\"", "json");
    assert_eq!(done.exit, Exit::Invalid);
    let mistake = &done.json()["mistakes"][0];
    assert_eq!((&mistake["place"], &mistake["line"]), (&json!(file.to_str()), &json!(3)));
    assert_eq!(mistake["column"], 1);

    let good = format!("trust_domain = \"example.org\"\nentries_dir = \"{}\"\n", entries.display());
    std::fs::write(entries.join("a.toml"), "[[entry]]\nid = 7\n").expect("written");
    let done = check(&good, "text");
    assert_eq!(done.exit, Exit::Invalid);
    assert!(done.data.contains("a.toml:2:6: "), "{}", done.data);
    std::fs::remove_file(entries.join("a.toml")).expect("removed");
    let done = check(&good, "text");
    assert_eq!((done.exit, done.data.as_str()), (Exit::Ok, ""), "{}", done.chatter);
}

#[test]
fn the_configuration_is_shown_with_origins() {
    let env = [("TETHER_SVID__JWT_TTL", "1m")];
    let done = tether_with("config show --dev --dir /tmp/x --origin --set svid.x509_ttl=2m", &env, "");
    let line = |key: &str| done.data.lines().find(|line| line.starts_with(key)).expect("shown").to_owned();
    assert!(line("x509_ttl").ends_with("# --set"), "{}", done.data);
    assert!(line("jwt_ttl").ends_with("# env TETHER_SVID__JWT_TTL"));
    assert!(line("trust_domain").ends_with("# --dev"));
    assert!(line("root_ttl").ends_with("# default"));
    let json = tether_with("config show --dev --output json", &[], "").json();
    let ttl = json["settings"].as_array().expect("a list").iter().find(|s| s["name"] == "svid.x509_ttl");
    assert_eq!(ttl, Some(&json!({ "name": "svid.x509_ttl", "value": "15m", "origin": "default" })));
}

#[test]
fn the_command_line_is_consistent_and_documents_itself() {
    use clap::CommandFactory;
    args::Cli::command().debug_assert();
    let version = tether_with("--version", &[], "");
    assert_eq!(version.exit, Exit::Ok);
    assert!(version.data.contains(&format!("SPIFFE specification {SPIFFE_COMMIT}\n")), "{}", version.data);
    assert!(tether_with("--help", &[], "").data.contains("Exit codes:"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(tether_with(&format!("completion {shell}"), &[], "").data.contains("fetch"), "{shell}");
    }
    assert!(tether_with("man", &[], "").data.contains("Exit codes:"));
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(tether_with(&format!("man --write {}", dir.path().display()), &[], "").exit, Exit::Ok);
    assert!(dir.path().join("tether-fetch-x509.1").exists() && dir.path().join("tether.1").exists());
    for wrong in
        ["", "nonsense", "fetch jwt", "fetch x509 --spiffe-id nonsense", "agent run --dir /x", "config show --set x"]
    {
        let done = tether_with(wrong, &[], "");
        assert_eq!((done.exit, done.data.as_str()), (Exit::Usage, ""), "{wrong}");
    }
}

#[test]
fn doctor_reports_every_feature_with_what_is_lost() {
    let json = tether_with("doctor --output json", &[], "").json();
    let findings = json["findings"].as_array().expect("a list");
    assert!(findings.len() >= 11, "{json}");
    for finding in findings {
        assert_eq!(finding["lost"].is_null(), finding["health"] == "ok", "{finding}");
    }
    let socket = findings.iter().find(|finding| finding["what"] == "workload socket").expect("looked for");
    assert_eq!(socket["health"], "missing");
}

/// A reader that went away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let chatter = Captured::default();
    let host = Host { root: Some(PathBuf::from("/nonexistent")), ..Host::process() };
    let arguments = ["tether", "explain", "--kinds"].map(OsString::from);
    assert_eq!(run(arguments, host, Output::captured(Closed, chatter.clone())), Exit::Ok);
    assert_eq!(chatter.text(), "");
}
