mod admin;
mod approval;
mod credential;
mod fetch_wit;
mod init;
mod manual;
mod reference;
mod session;

use std::collections::BTreeMap;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tonic::Status;

use crate::base::clock::Clock;
use crate::client::fake::{Documents, FakeWorkloadApi, NOW, Served};
use crate::proto::workload::{JwtsvidResponse, ValidateJwtsvidResponse, X509BundlesResponse, X509svidResponse};

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

/// The names in an object, sorted: their order means nothing.
fn keys(value: &Value) -> Vec<String> {
    let mut keys: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
    keys.sort();
    keys
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
    tether_on(bare_host(env, input), line)
}

fn bare_host(env: &[(&str, &str)], input: &str) -> Host {
    Host {
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
        uid: nix::unistd::geteuid().as_raw(),
        input: Box::new(Cursor::new(input.to_owned())),
        clock: Clock::manual(NOW).0,
        interactive: false,
        root: Some(PathBuf::from("/nonexistent")),
    }
}

fn tether_on(host: Host, line: &str) -> Done {
    let (data, chatter) = (Captured::default(), Captured::default());
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

fn bundles_with(td: &Documents, lists: &[Vec<u8>]) -> X509BundlesResponse {
    X509BundlesResponse {
        bundles: [(td.domain_id(), td.bundle().into())].into(),
        crl: lists.iter().map(|list| list.clone().into()).collect(),
    }
}

#[test]
fn without_all_revocation_lists_no_certificate_is_written() {
    let td = Documents::of("example.org");
    let served = workload(|script| script.x509.push_back(vec![Ok(two_identities(&td))]));
    let dir = tempfile::tempdir().expect("a directory");
    let done = tether(&format!("fetch x509 --write {}", dir.path().display()), &served);
    assert_ne!(done.exit, Exit::Ok);
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "{}", done.chatter);
}

#[test]
fn fetch_x509_prints_what_scripts_rely_on() {
    let td = Documents::of("example.org");
    let served = workload(|script| {
        script.x509.push_back(vec![Ok(two_identities(&td))]);
        script.x509_bundles.push_back(bundles_with(&td, &[td.crl(&[2])]));
    });
    let done = tether("fetch x509 --output json", &served);
    assert_eq!(done.exit, Exit::Ok, "{}", done.chatter);
    let json = done.json();
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
    assert!(json["crl_pem"][0].as_str().expect("text").starts_with("-----BEGIN X509 CRL-----\n"));
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
    let incomplete = X509svidResponse { crl: vec![td.crl(&[]).into()], ..two_identities(&td) };
    let served = workload(|script| {
        script.x509.extend([vec![Ok(incomplete.clone())], vec![Ok(incomplete)]]);
        script.x509_bundles.extend([bundles_with(&td, &[]), bundles_with(&td, &[td.crl(&[2]), td.crl(&[])])]);
    });
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
    assert!(!target.join("crl.pem").exists(), "the lists are those of FetchX509Bundles, which had none");
    assert_eq!(tether(&line, &served).exit, Exit::Ok);
    let lists = std::fs::read_to_string(target.join("crl.pem")).expect("there");
    assert_eq!(lists.matches("-----BEGIN X509 CRL-----\n").count(), 2);
    assert_eq!(std::fs::metadata(target.join("crl.pem")).expect("there").mode() & 0o7777, 0o644);
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
        status.metadata_mut().insert(crate::proto::DENIAL_METADATA, reason.parse().expect("ascii"));
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
