//! Running an agent: probes, reload, roles, the admin API, notification, stopping, and what the log never holds.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use tether::audit::Event;
use tether::base::clock::Clock;
use tether::config::AuthorityKind;
use tether::id::TrustDomain;
use tether::proto::admin::agent_client::AgentClient;
use tether::proto::admin::{
    ApplyEntriesRequest, CreateEntryRequest, DeleteBundleRequest, DeleteEntryRequest, GetEntryRequest,
    ListEntriesRequest, LogLevelRequest, ReloadRequest, SetBundleRequest, ShowBundlesRequest, StatusRequest,
    UpdateEntryRequest,
};
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtBundlesRequest, JwtsvidRequest, X509BundlesRequest, X509svidRequest};
use tether::x509::{Chain, KeyType, PrivateKey, Serial, Validity, X509Authorities, self_signed_root, verify};
use tonic::Code;

use crate::harness::{Header, TestAgent, channel, event, next, uid, within};
use crate::program::{AgentProcess, NOBODY, Program, is_root};
use crate::raw::{self, Raw, get};

const LOCAL: &str = "127.0.0.1:0";
const DOMAIN: &str = "spiffe://dev.tether.internal";

fn jwt_request() -> JwtsvidRequest {
    JwtsvidRequest { audience: vec!["demo".to_owned()], spiffe_id: String::new() }
}

fn entry(id: &str, path: &str, more: &str) -> String {
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"{DOMAIN}/{path}\"\nmatch = [\"unix:uid:{}\"]\nowner = \"o\"\n{more}",
        uid()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_whether_it_lives_and_which_part_is_not_ready() {
    let agent = TestAgent::configured(|config| config.http.address = Some(LOCAL.parse().unwrap())).await;
    let http = agent.http();
    assert_eq!(get(http, "/livez").await.0, 200);
    for path in ["/readyz", "/readyz/agent", "/readyz/authority", "/readyz/entries"] {
        let (code, body) = get(http, path).await;
        assert_eq!(code, 200, "{path}: {body}");
        assert!(body.contains("\"ready\":true"), "{path}: {body}");
    }
    for path in ["/", "/readyz/shoes", "/metricsx", "/readyz/"] {
        assert_eq!(get(http, path).await.0, 404, "{path}");
    }
    agent.write_entries("bad.toml", "[[entry]").await;
    let unready = async {
        loop {
            let (code, body) = get(http, "/readyz").await;
            if code == 503 {
                return body;
            }
        }
    };
    let body = within(unready).await;
    assert!(body.contains("\"ready\":false") && body.contains("bad.toml:1:"), "{body}");
    assert_eq!(get(http, "/readyz/authority").await.0, 200, "the other parts are what they were");
    assert_eq!(get(http, "/livez").await.0, 200, "no reason to restart it");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_stable_names_and_no_name_of_a_caller() {
    let agent = TestAgent::configured(|config| config.http.address = Some(LOCAL.parse().unwrap())).await;
    let mut client = agent.workload().await;
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    client.fetch_jwtsvid(jwt_request()).await.unwrap();
    let other = JwtsvidRequest { spiffe_id: format!("{DOMAIN}/other"), ..jwt_request() };
    client.fetch_jwtsvid(other).await.unwrap_err();
    let mut garbage = Raw::connect(agent.socket()).await;
    garbage.send(&[0xff; 64]).await.unwrap();
    garbage.until_closed().await;
    let expected = [
        "tether_build_info{",
        "tether_svid_issued_total{type=\"x509\",result=\"ok\"} 1\n",
        "tether_svid_issued_total{type=\"jwt\",result=\"ok\"} 1\n",
        "tether_attestation_duration_seconds_count{attestor=\"unix\"} 1\n",
        "tether_workload_streams{rpc=\"FetchX509SVID\"} 1\n",
        "tether_workload_connections 1\n",
        "tether_identity_cert_expiration_timestamp_seconds ",
        "tether_identity_cert_refresh_timestamp_seconds ",
        "tether_identity_cert_refreshes_total{result=\"ok\"} 1\n",
        "tether_bundle_expiration_timestamp_seconds{trust_domain=\"dev.tether.internal\"} ",
        "tether_entries 1\n",
        "tether_entries_load_success 1\n",
        "tether_config_reload_success 1\n",
        "tether_refused_total{reason=\"not_granted\"} 1\n",
        "tether_connections_refused_total{reason=\"wire\"} 1\n",
        "# EOF\n",
    ];
    // Each part of the agent reports when it gets to it.
    let all_there = async {
        loop {
            let (code, text) = get(agent.http(), "/metrics").await;
            assert_eq!(code, 200);
            if expected.iter().all(|line| text.contains(line)) {
                return text;
            }
        }
    };
    let text = within(all_there).await;
    assert!(!text.contains("spiffe://") && !text.contains(&std::process::id().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_while_running_and_a_wrong_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = AgentProcess::start(dir.path(), &[], &[]);
    let mut admin = AgentClient::new(channel(&agent.admin()).await);
    let mut set = async |level: &str| admin.log_level(LogLevelRequest { level: level.to_owned() }).await;
    assert_eq!(set("").await.unwrap().into_inner().level, "info");
    assert_eq!(set("loud").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(set("").await.unwrap().into_inner().level, "info", "a wrong one changes nothing");
    assert_eq!(set("debug").await.unwrap().into_inner().level, "debug");
    assert_eq!(set("").await.unwrap().into_inner().level, "debug");
    let mut client = SpiffeWorkloadApiClient::with_interceptor(channel(&agent.workload()).await, Header);
    client.fetch_jwtsvid(jwt_request()).await.unwrap();
    agent.log_line("svid_issued"); // each token is recorded at debug level
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_with_a_mistake_says_where_and_keeps_serving() {
    let agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();
    std::fs::write(agent.config().entries_dir.join("bad.toml"), "[[entry]]\nid = 7\n").unwrap();
    let sources = agent.agent().await.reload(ReloadRequest {}).await.unwrap().into_inner().sources;
    let entries = sources.iter().find(|source| source.source == "entries").unwrap();
    assert!(!entries.ok && entries.messages.join("\n").contains("bad.toml:2:6"), "{entries:?}");
    let mut again = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut again).await.unwrap(), before);
    std::fs::remove_file(agent.config().entries_dir.join("bad.toml")).unwrap();
    let sources = agent.agent().await.reload(ReloadRequest {}).await.unwrap().into_inner().sources;
    assert!(sources.iter().all(|source| source.ok), "{sources:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_start_reload_watchdog_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let said = move || {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let until = move |wanted: &str| loop {
        let message = said();
        if message.contains(wanted) {
            return message;
        }
    };
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut agent = AgentProcess::start(dir.path(), &[], &env);
    until("READY=1");
    until("WATCHDOG=1");
    std::fs::write(agent.entries().join("bad.toml"), "[[entry]").unwrap();
    agent.signal(Signal::SIGHUP);
    assert!(until("RELOADING=1").contains("MONOTONIC_USEC="), "systemd wants the time of it");
    assert!(until("READY=1").contains("STATUS=serving; not reloaded: entries"));
    assert!(agent.log_line("reloaded entries").contains("bad.toml:1:"));
    let mut client = SpiffeWorkloadApiClient::with_interceptor(channel(&agent.workload()).await, Header);
    client.fetch_jwtsvid(jwt_request()).await.expect("it serves on");
    let stopped = std::thread::spawn(move || agent.stop());
    until("STOPPING=1");
    assert!(stopped.join().unwrap().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_do_not_hold_up_the_stop() {
    let mut agent = TestAgent::configured(|config| config.limits.drain = Duration::from_secs(3600)).await;
    let connect = |socket: &Path| std::os::unix::net::UnixStream::connect(socket).unwrap();
    let silent = [connect(agent.socket()), connect(agent.admin_socket())];
    // They speak HTTP/2 as far as that they are asked whether they are there, and do not answer.
    let speaking = [connect(agent.socket()), connect(agent.admin_socket())];
    for mut client in &speaking {
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        client.read_exact(&mut [0; 9]).unwrap();
    }
    // They begin a call and do not end it.
    let mut calling = [Raw::greeted(agent.socket()).await, Raw::greeted(agent.socket()).await];
    for client in &mut calling {
        client.send(&raw::begun(1, "FetchJWTSVID")).await.unwrap();
    }
    agent.stop().await;
    drop((silent, speaking, calling));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_open_streams_with_unavailable_removes_the_sockets_and_is_a_success() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(dir.path(), &[], &[]);
    let (workload, admin) = (agent.workload(), agent.admin());
    let mut client = SpiffeWorkloadApiClient::with_interceptor(channel(&workload).await, Header);
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let stopped = std::thread::spawn(move || agent.stop());
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::Unavailable, "clients connect again on this");
    let (status, log) = within(tokio::task::spawn_blocking(move || stopped.join().unwrap())).await.unwrap();
    assert!(status.success(), "{status} {log}");
    assert!(!workload.exists() && !admin.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_and_no_token_is_in_the_log_at_its_loudest() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["text", "json"] {
        let set = format!("log.format={format}");
        let agent = AgentProcess::start(dir.path(), &["--set", "log.level=trace", "--set", &set], &[]);
        let mut client = SpiffeWorkloadApiClient::with_interceptor(channel(&agent.workload()).await, Header);
        let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        let key = next(&mut stream).await.unwrap().svids.remove(0).x509_svid_key;
        let token = client.fetch_jwtsvid(jwt_request()).await.unwrap().into_inner().svids.remove(0).svid;
        let validate =
            tether::proto::workload::ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: token.clone() };
        client.validate_jwtsvid(validate).await.unwrap();
        let wrong = format!("{token}x");
        let validate = tether::proto::workload::ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: wrong };
        client.validate_jwtsvid(validate).await.unwrap_err();
        let (_, log) = agent.stop();
        assert!(log.contains("TRACE"), "it is at its loudest");
        assert!(!log.contains(token.rsplit('.').next().unwrap()), "the signature of a token is in the log");
        assert!(!log.contains(token.split('.').nth(1).unwrap()), "the claims of a token are in the log");
        // Past the header of PKCS#8, which is no secret, 16 bytes at a time, in the ways a log shows bytes.
        for part in key.chunks_exact(16).skip(2) {
            let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            let list = part.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let escaped = part.escape_ascii().to_string();
            let base64 = STANDARD.encode(&part[..15]);
            for shown in [&hex, &hex.to_uppercase(), &list, &base64, &escaped] {
                assert!(!log.contains(shown), "a key is in the log");
            }
        }
    }
}

fn run_as_nobody(program: &Program, agent: &TestAgent, arguments: &[&str]) -> Output {
    let mut command = program.as_user(NOBODY, arguments);
    command.env("TETHER_ADMIN_SOCKET", agent.admin_socket());
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
    command.output().expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_role_may_ask_about_itself_and_nothing_else() {
    if !is_root() {
        return eprintln!("not tried: acting as another user takes root");
    }
    let agent = TestAgent::without_entries().await;
    std::fs::set_permissions(agent.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = Program::copied_to(agent.dir());
    let ours = std::process::id().to_string();
    let refused: &[&[&str]] = &[
        &["status"],
        &["entry", "list"],
        &["entry", "delete", "dev"],
        &["authority", "show"],
        &["authority", "rotate"],
        &["bundle", "show"],
        &["log", "level", "trace"],
        &["agent", "reload"],
        &["explain", "--pid", &ours],
    ];
    tokio::task::block_in_place(|| {
        for arguments in refused {
            let done = run_as_nobody(&program, &agent, arguments);
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(6), "{arguments:?}: {said}");
            assert!(said.contains("role"), "{arguments:?}: {said}");
        }
        let explained = run_as_nobody(&program, &agent, &["explain"]);
        let said = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(said.contains(&format!("unix:uid:{NOBODY}")), "{said} {}", String::from_utf8_lossy(&explained.stderr));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_made_changed_listed_and_deleted_and_outlive_a_restart() {
    let mut agent = TestAgent::start().await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let mut entries = agent.entries().await;
    let mut events = agent.audit();
    let created = entries.create(CreateEntryRequest { toml: entry("a", "a", "") }).await.unwrap().into_inner();
    assert!(created.revision > 0 && created.origin.contains("store") && !created.created_at.is_empty(), "{created:?}");
    let audited = event(&mut events, |event| matches!(event, Event::Admin { .. })).await;
    let Event::Admin { caller, action, subject } = audited else { unreachable!() };
    assert_eq!((caller.uid, action, subject.as_str()), (uid(), "entry.create", "a"));
    let ids = |answer: tether::proto::workload::X509svidResponse| -> Vec<String> {
        answer.svids.into_iter().map(|svid| svid.spiffe_id).collect()
    };
    assert!(ids(next(&mut stream).await.unwrap()).contains(&format!("{DOMAIN}/a")), "open streams learn of it");

    let taken = entries.create(CreateEntryRequest { toml: entry("a", "b", "") }).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let taken = entries.create(CreateEntryRequest { toml: entry("dev", "b", "") }).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "a built-in entry has this id");
    let wrong =
        entries.create(CreateEntryRequest { toml: "id = \"b\"\nspiffe_id = \"x\"\n".to_owned() }).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("2:"), "{wrong}");

    let update = UpdateEntryRequest { toml: entry("a", "b", ""), revision: created.revision };
    let updated = entries.update(update.clone()).await.unwrap().into_inner();
    assert!(updated.revision > created.revision);
    assert_eq!(updated.created_at, created.created_at);
    assert_eq!(entries.update(update).await.unwrap_err().code(), Code::Aborted, "somebody else changed it meanwhile");
    let missing = UpdateEntryRequest { toml: entry("none", "b", ""), revision: 0 };
    assert_eq!(entries.update(missing).await.unwrap_err().code(), Code::NotFound);

    agent.write_entries("file.toml", &entry("filed", "filed", "")).await;
    let elsewhere = entries.delete(DeleteEntryRequest { id: "filed".to_owned() }).await.unwrap_err();
    assert!(elsewhere.code() == Code::FailedPrecondition && elsewhere.message().contains("file.toml"), "{elsewhere}");

    agent.restart().await;
    let mut entries = agent.entries().await;
    let listed = entries.list(ListEntriesRequest {}).await.unwrap().into_inner().entries;
    let listed: Vec<_> = listed.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(listed, ["filed", "a", "dev"], "files, the store, built in");
    let got = entries.get(GetEntryRequest { id: "a".to_owned() }).await.unwrap().into_inner();
    assert_eq!(got, updated, "as it was before");
    entries.delete(DeleteEntryRequest { id: "a".to_owned() }).await.unwrap();
    assert_eq!(entries.get(GetEntryRequest { id: "a".to_owned() }).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_entries_is_applied_whole_or_not_at_all() {
    let agent = TestAgent::start().await;
    let mut entries = agent.entries().await;
    let both = format!("{}{}", entry("a", "a", ""), entry("b", "b", ""));
    let mut apply =
        async |toml: &str, dry_run| entries.apply(ApplyEntriesRequest { toml: toml.to_owned(), dry_run }).await;
    let counts = |answer: tonic::Response<tether::proto::admin::ApplyEntriesResponse>| {
        let answer = answer.into_inner();
        (answer.created, answer.updated, answer.unchanged)
    };
    assert_eq!(counts(apply(&both, true).await.unwrap()), (2, 0, 0));
    assert_eq!(counts(apply(&both, false).await.unwrap()), (2, 0, 0), "judging changed nothing");
    assert_eq!(counts(apply(&both, false).await.unwrap()), (0, 0, 2));
    let changed = format!("{}{}{}", entry("a", "a2", ""), entry("b", "b", ""), entry("c", "c", ""));
    assert_eq!(counts(apply(&changed, false).await.unwrap()), (1, 1, 1));
    let half_wrong = format!("{}{}", entry("d", "d", ""), entry("e", "e", "shoe = 1\n"));
    assert_eq!(apply(&half_wrong, false).await.unwrap_err().code(), Code::InvalidArgument);
    let absent = entries.get(GetEntryRequest { id: "d".to_owned() }).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "nothing of a set with a mistake is there");
}

/// A root authority of some trust domain, in PEM: certificate and key.
fn root(domain: &str) -> (String, String) {
    root_of(domain, Duration::from_secs(90 * 86_400))
}

/// A root that lasts for so long, and its key.
fn root_of(domain: &str, lifetime: Duration) -> (String, String) {
    let now = Clock::system().now();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let pem = key.to_pem().unwrap().expose().clone();
    let validity = Validity { not_before: now - Duration::from_secs(3600), not_after: now + lifetime };
    let domain = TrustDomain::parse(domain).unwrap();
    let root = self_signed_root(domain, key, validity, &Serial::from_random([7; 16])).unwrap();
    (root.certificate().to_pem(), pem)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_bundle_reaches_the_streams_of_those_that_federate_and_goes_again() {
    let agent = TestAgent::start().await;
    agent.write_entries("f.toml", &entry("f", "f", "federates_with = [\"partner.test\"]\n")).await;
    let mut client = agent.workload().await;
    let mut svids = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let mut x509 = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    let mut jwt = client.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap().into_inner();
    assert!(next(&mut svids).await.unwrap().federated_bundles.is_empty());
    let own_only = next(&mut x509).await.unwrap();
    next(&mut jwt).await.unwrap();

    let mut bundles = agent.bundles().await;
    let (content, _) = root("partner.test");
    let set = |trust_domain: &str, content: &str| SetBundleRequest {
        trust_domain: trust_domain.to_owned(),
        content: content.to_owned(),
    };
    let refused = bundles.set(set("partner.test", "not a bundle")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    bundles.set(set("stranger.test", &root("stranger.test").0)).await.unwrap();
    bundles.set(set("partner.test", &content)).await.unwrap();
    let partner = "spiffe://partner.test";
    assert!(next(&mut svids).await.unwrap().federated_bundles.contains_key(partner));
    let both = next(&mut x509).await.unwrap().bundles;
    assert!(both.contains_key(partner) && !both.contains_key("spiffe://stranger.test"), "{:?}", both.keys());
    let shown =
        bundles.show(ShowBundlesRequest { trust_domain: "partner.test".to_owned() }).await.unwrap().into_inner();
    assert!(!shown.bundles[0].own);
    assert_eq!(shown.bundles[0].pem.trim(), content.trim());

    bundles.delete(DeleteBundleRequest { trust_domain: "partner.test".to_owned() }).await.unwrap();
    assert_eq!(next(&mut x509).await.unwrap(), own_only);
    assert!(next(&mut svids).await.unwrap().federated_bundles.is_empty());
    let again = bundles.delete(DeleteBundleRequest { trust_domain: "partner.test".to_owned() }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

async fn on_disk(dir: &Path) -> TestAgent {
    TestAgent::configured(|config| {
        config.authority.kind = AuthorityKind::Disk;
        config.authority.cert_file = Some(dir.join("root.pem"));
        config.authority.key_file = Some(dir.join("root_key.pem"));
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_root_on_disk_trust_each_others_workloads() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = root("dev.tether.internal");
    std::fs::write(dir.path().join("root.pem"), &certificate).unwrap();
    std::fs::write(dir.path().join("root_key.pem"), key).unwrap();
    std::fs::set_permissions(dir.path().join("root_key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (one, other) = (on_disk(dir.path()).await, on_disk(dir.path()).await);
    let mut answers = Vec::new();
    for agent in [&one, &other] {
        let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        answers.push(next(&mut stream).await.unwrap().svids.remove(0));
    }
    assert_ne!(answers[0].x509_svid, answers[1].x509_svid);
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    for (svid, bundle) in [(&answers[0], &answers[1].bundle), (&answers[1], &answers[0].bundle)] {
        let authorities = X509Authorities::from_der(domain.clone(), bundle).unwrap();
        let believed = verify(&Chain::from_der(&svid.x509_svid).unwrap(), &authorities, one.clock().now(), &[]);
        assert_eq!(believed.unwrap().spiffe_id().as_str(), svid.spiffe_id);
        assert_eq!(authorities.to_pem().trim(), certificate.trim(), "the bundle is the root in the file");
    }
    let status = one.agent().await.status(StatusRequest {}).await.unwrap().into_inner().json;
    assert!(status.contains("x509-signing"), "{status}");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let of_file = status["authorities"].as_array().unwrap().iter().find(|slot| slot["kind"] == "x509-disk").unwrap();
    let ends = X509Authorities::from_pem(domain, certificate.as_bytes()).unwrap().certificates()[0].not_after();
    assert_eq!(of_file["not_after"], ends.format(&time::format_description::well_known::Rfc3339).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_on_disk_that_has_ended_does_not_hold_up_calls_that_do_not_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = root_of("dev.tether.internal", Duration::from_secs(3 * 3600));
    std::fs::write(dir.path().join("root.pem"), &certificate).unwrap();
    std::fs::write(dir.path().join("root_key.pem"), key).unwrap();
    std::fs::set_permissions(dir.path().join("root_key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let agent = on_disk(dir.path()).await;
    let domain = TrustDomain::parse("dev.tether.internal").unwrap();
    let ends = X509Authorities::from_pem(domain, certificate.as_bytes()).unwrap().certificates()[0].not_after();
    agent.clock().set(ends + Duration::from_secs(60));
    let mut client = agent.workload().await;
    within(async { while client.fetch_jwtsvid(jwt_request()).await.is_err() {} }).await;
    // The wait for a rotation that does not come, as often as this, would be longer than any patience.
    within(async {
        for _ in 0..40 {
            client.fetch_jwtsvid(jwt_request()).await.unwrap();
        }
    })
    .await;
    let mut refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut refused).await.unwrap_err().code(), Code::Unavailable);
}

#[test]
fn with_few_descriptors_one_users_connections_leave_room_for_another_user() {
    if !is_root() {
        return; // it takes two users
    }
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentProcess::with_open_files(dir.path(), 256);
    let program = Program::copied_to(dir.path());
    for closed in [dir.path(), agent.workload().parent().unwrap().parent().unwrap()] {
        std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let held: Vec<_> = (0..300).map(|_| std::os::unix::net::UnixStream::connect(agent.workload()).unwrap()).collect();
    let socket = format!("unix://{}", agent.workload().display());
    let asked = program.as_user(NOBODY, &["--socket", &socket, "agent", "healthcheck"]).output().unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    drop(held);
    let (status, log) = agent.stop();
    assert!(status.success() && !log.contains("no connection can be accepted"), "{log}");
}
