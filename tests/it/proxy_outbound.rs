//! `tether proxy outbound`: programs that speak plain HTTP, each in its own name.

mod attacks;
mod program;
mod world;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tether::proto::admin::{CredentialFilter, RevokeCredentialsRequest};

use self::program::{Program, request};
use self::world::{Tool, World};

fn id(name: &str) -> String {
    format!("spiffe://dev.tether.internal/{name}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_knows_nothing_of_spiffe_calls_in_its_own_name_by_certificate_and_proof() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    let lies = "Host: localhost\r\nTether-User: root\r\nTether_Session: x\r\nX-Forwarded-Client-Cert: URI=spiffe://x/y\r\n\
                Workload-Identity-Token: x\r\nAuthorization: Bearer mine\r\nConnection: Authorization, Workload-Identity-Token\r\n\
                Accept: */*\r\nContent-Length: 2\r\n\r\nhi";
    let answer = a.exchange(&format!("POST /pay?much=1 HTTP/1.1\r\n{lies}"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "this is /pay"));
    let [seen] = &world.tool.seen()[..] else { panic!("one request was made") };
    assert_eq!((seen.peer.as_deref(), &seen.body[..]), (Some(id("program/a").as_str()), &b"hi"[..]));
    let mut names: Vec<&str> =
        seen.headers.keys().map(http::HeaderName::as_str).filter(|name| *name != "host").collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "authorization", "content-length", "workload-identity-token"]);
    let checked = world.check(seen).await;
    assert!(checked.active, "{checked:?}");
    assert_eq!((checked.spiffe_id, checked.binding, checked.session.as_str()), (id("program/a"), 3, ""));
    let again = world.check(seen).await;
    assert_eq!(again.reason, "replayed", "a proof is good once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_at_one_proxy_are_two_and_share_no_connection() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let (mut a, mut b) = (Program::connected(&world, "a", &proxy), Program::connected(&world, "b", &proxy));
    for _ in 0..2 {
        assert_eq!(a.call("GET", "/a").status, 200);
        assert_eq!(b.call("GET", "/b").status, 200);
    }
    let mut connections = [Vec::new(), Vec::new()];
    for seen in world.tool.seen() {
        let (name, of) = if seen.path == "/a" { ("program/a", 0) } else { ("program/b", 1) };
        assert_eq!(seen.peer, Some(id(name)));
        assert_eq!(world.check(&seen).await.spiffe_id, id(name));
        connections[of].push(seen.connection);
    }
    assert!(connections[0].iter().all(|number| !connections[1].contains(number)), "{connections:?}");
    assert_eq!(connections[0][0], connections[0][1], "one program's requests use its connection again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_cuts_what_is_open_on_both_sides_and_a_new_one_begins_anew() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/before").status, 200, "outside of any session");
    let session = a.start_session(&world.tool.uri("/"));
    a.begin_endless();
    let seen = world.tool.seen();
    assert_eq!(world.check(&seen[0]).await.session, "");
    assert_eq!(world.check(&seen[1]).await.session, session, "on the same connection, in the session that it began");
    a.end_session(&session);
    a.is_cut();
    world.tool.was_cut().await;

    let next = a.start_session(&world.tool.uri("/"));
    a.connect(&proxy.address);
    assert_eq!(a.call("GET", "/after").status, 200);
    assert_eq!(world.check(world.tool.seen().last().unwrap()).await.session, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_on_an_open_connection_cuts_it_also_where_no_proof_is_shown() {
    let world = World::new().await;
    let proxy = world.proxy(&["--proof", "none"]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/before").status, 200, "outside of any session");
    let session = a.start_session(&world.tool.uri("/"));
    a.begin_endless();
    a.end_session(&session);
    a.is_cut();
    world.tool.was_cut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_says_where_to_and_a_call_elsewhere_is_refused_in_words_without_a_401() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    a.start_session(&world.tool.uri("/allowed/"));
    assert_eq!(a.call("GET", "/allowed/x").status, 200);
    let refused = a.call("GET", "/other");
    assert_eq!(refused.status, 403);
    assert_eq!(
        (&refused.json()["error"], &refused.json()["reason"]),
        (&"denied".into(), &"target_not_in_session".into())
    );
    assert_eq!(world.tool.seen().len(), 1);
    let not_taken = a.call("GET", "/allowed/../401");
    assert_eq!((not_taken.status, &not_taken.json()["error"]), (400, &"path".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_up_names_the_approval() {
    let world = World::new().await;
    let policy = "@id(\"careful\") @step_up(\"ask\") permit (principal, action in Action::\"call\", resource) \
                  when { context.method == \"DELETE\" };";
    world.agent.write_policies("careful.cedar", policy).await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    a.start_session(&world.tool.uri("/"));
    let refused = a.call("DELETE", "/all");
    assert_eq!((refused.status, &refused.json()["error"]), (403, &"step_up".into()));
    assert!(refused.json()["approval"].as_str().is_some_and(|approval| !approval.is_empty()), "{refused:?}");
    assert_eq!(a.call("GET", "/all").status, 200, "the connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_takes_its_connections_to_the_target_along() {
    let world = World::new().await;
    let proxy = world.proxy(&["--proof", "none"]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    a.begin_endless();
    a.kill();
    world.tool.was_cut().await;
    let [seen] = &world.tool.seen()[..] else { panic!("one request was made") };
    assert!(!seen.headers.contains_key("authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_loses_its_identity_is_cut() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    a.begin_endless();
    let file = world.agent.config().entries_dir.join("entries.toml");
    let entries = std::fs::read_to_string(&file).unwrap().replace("/a\"]", "/no-more\"]");
    world.agent.write_entries("entries.toml", &entries).await;
    a.is_cut();
    world.tool.was_cut().await;
    a.connect(&proxy.address);
    let refused = a.call("GET", "/again");
    assert_eq!((refused.status, &refused.json()["error"]), (403, &"denied".into()), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_whose_certificate_is_revoked_is_cut_off() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    a.begin_endless();
    // Lists are announced once a second: the pause after the last time is over.
    world.agent.clock().advance(Duration::from_secs(2));
    let filter = CredentialFilter { spiffe_id: id("tool"), ..CredentialFilter::default() };
    let revoked = RevokeCredentialsRequest { filter: Some(filter), reason: "test".to_owned(), ..Default::default() };
    world.agent.credentials().await.revoke(revoked).await.unwrap();
    a.is_cut();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_over_a_restart_of_the_agent() {
    let mut world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/before").status, 200);
    world.agent.stop().await;
    a.tell(serde_json::json!({ "exchange": request("GET", "/during") }));
    world.agent.restart().await;
    let answer: Value = serde_json::from_str(&a.answered()).unwrap();
    assert_eq!(answer["status"], 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_is_shown_to_the_outside_service_alone_and_used_again() {
    let world = World::new().await;
    let (tls, roots) = outside();
    let (service, file) = (Tool::with(tls).await, world.dir.path().join("roots.pem"));
    std::fs::write(&file, roots).unwrap();
    let listen = format!("unix:{}", world.dir.path().join("outside.sock").display());
    let arguments = ["--bearer", "https://api.example.com", "--roots", file.to_str().unwrap(), "--target"];
    let proxy = world.proxy_at(&listen, &[&arguments[..], &[&service.uri("")]].concat()).await;
    let mut a = Program::connected(&world, "a", &proxy);
    let mut answers = vec![a.exchange("GET /v1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\n\r\n")];
    answers.extend(["/v1", "/redirect", "/401", "/v1"].map(|path| a.call("GET", path)));
    let statuses: Vec<u64> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 302, 403, 200]);
    assert_eq!(answers[3].json()["error"], "not_taken", "never a 401");

    let seen = service.seen();
    let tokens: Vec<&str> = seen.iter().map(|seen| seen.headers["authorization"].to_str().unwrap()).collect();
    let claims = |token: &str| {
        use base64::Engine as _;
        let claims = token.strip_prefix("Bearer ").unwrap().split('.').nth(1).unwrap();
        serde_json::from_slice::<Value>(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap())
            .unwrap()
    };
    assert_eq!(
        (&claims(tokens[0])["sub"], &claims(tokens[0])["aud"][0]),
        (&id("program/a").into(), &"https://api.example.com".into())
    );
    assert!(tokens[..4].iter().all(|token| *token == tokens[0]), "one token for all");
    assert!(tokens[4] != tokens[0] && tokens[5] != tokens[4], "one that was not taken is not shown again");
    assert!(seen.iter().all(|seen| seen.peer.is_none()), "no certificate is shown");
    assert_eq!(a.call("TRACE", "/v1").status, 405);
    assert_eq!(service.seen().len(), 6);

    let mut b = Program::connected(&world, "b", &proxy);
    assert_eq!(b.call("GET", "/v1").status, 200);
    assert_eq!(claims(service.seen()[6].headers["authorization"].to_str().unwrap())["sub"], id("program/b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outside_service_without_a_certificate_for_its_name_is_shown_nothing() {
    let world = World::new().await;
    let (tls, _) = outside();
    let (_, other) = outside();
    let (service, file) = (Tool::with(tls).await, world.dir.path().join("roots.pem"));
    std::fs::write(&file, other).unwrap();
    let listen = format!("unix:{}", world.dir.path().join("outside.sock").display());
    let arguments = ["--bearer", "https://api.example.com", "--roots", file.to_str().unwrap(), "--target"];
    let proxy = world.proxy_at(&listen, &[&arguments[..], &[&service.uri("")]].concat()).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/v1").status, 502);
    assert!(service.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_behind_a_port_is_known_by_its_user_and_less_well() {
    let world = World::new().await;
    let uid = crate::harness::uid();
    let entry = format!(
        "[[entry]]\nid = \"user\"\nspiffe_id = \"{}\"\nowner = \"team\"\nmatch = [\"unix:uid:{uid}\"]\n",
        id("program/user")
    );
    world.agent.write_entries("user.toml", &entry).await;
    let (to, peer) = (world.tool.uri(""), id("tool"));
    let proxy = world.proxy_at("127.0.0.1:0", &["--target", &to, "--peer", &peer]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.exchange(&format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address)).status, 200);
    let checked = world.check(&world.tool.seen()[0]).await;
    assert_eq!((checked.spiffe_id, checked.binding), (id("program/user"), 2), "its executable is no evidence");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_told_to_end_finishes_what_is_open() {
    let world = World::new().await;
    let proxy = world.proxy(&[]).await;
    let mut a = Program::connected(&world, "a", &proxy);
    assert_eq!(a.call("GET", "/x").status, 200);
    proxy.signal(Signal::SIGTERM);
    a.is_cut();
    assert!(proxy.ends().await);
    assert!(!world.dir.path().join("proxy.sock").exists());
}

/// TLS for `localhost`, and the root to believe it by.
fn outside() -> (rustls::ServerConfig, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let chain = vec![certificate.der().clone()];
    (builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap(), certificate.pem())
}
