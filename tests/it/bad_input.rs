//! What is malformed, too much, broken or taken: each is answered with a clear error, costs the others nothing, and
//! loses nothing.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tether::agent::{self, Deps};
use tether::audit::Event;
use tether::base::text::chain;
use tether::config::{Config, OnAuditFailure};
use tether::proto::admin::{CreateEntryRequest, GetEntryRequest, StatusRequest};
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, X509svidRequest};
use tonic::{Code, Request, Status};

use crate::harness::{Header, TestAgent, event, next, uid, within};
use crate::program::{NOBODY, Program, is_root};
use crate::raw::{Raw, call, get, reset};

const LOCAL: &str = "127.0.0.1:0";
/// Long enough for an honest client and short enough to wait for.
const SHORT: Duration = Duration::from_secs(3);

/// A new client is served: what happened before did not hurt anybody.
async fn serves(agent: &TestAgent) {
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.expect("served").into_inner();
    next(&mut stream).await.expect("others are served");
}

fn jwt_request(audience: &[&str], spiffe_id: &str) -> JwtsvidRequest {
    JwtsvidRequest { audience: audience.iter().map(ToString::to_string).collect(), spiffe_id: spiffe_id.to_owned() }
}

/// Why an agent with this configuration does not start.
async fn refused_start(config: Config) -> String {
    match agent::build(config, Deps::default()).await {
        Ok(_) => panic!("it started"),
        Err(error) => chain(&error),
    }
}

/// A configuration in a directory of its own.
fn config_in(dir: &Path) -> Config {
    Config::for_dev(&dir.join("agent"))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_the_metadata_are_refused_and_say_which() {
    let agent = TestAgent::start().await;
    let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
    for values in [&[][..], &["false"], &["TRUE"], &[""], &["true", "true"]] {
        let mut request = Request::new(jwt_request(&["demo"], ""));
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", value.parse().unwrap());
        }
        let refused = client.fetch_jwtsvid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{values:?}");
        assert!(refused.message().contains("workload.spiffe.io: true"), "{}", refused.message());
    }
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_no_entry_matches_is_told_who_it_is_and_recorded() {
    let agent = TestAgent::without_entries().await;
    let mut events = agent.audit();
    let refused = agent.workload().await.fetch_jwtsvid(jwt_request(&["demo"], "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(&format!("{}", std::process::id())), "{}", refused.message());
    let recorded = event(&mut events, |event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { caller, .. } = recorded else { unreachable!() };
    assert_eq!((caller.uid, caller.pid.unsigned_abs()), (uid(), std::process::id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_by_the_name_of_their_field() {
    let agent = TestAgent::start().await;
    let mut client = agent.workload().await;
    let long = "a".repeat(5000);
    let many = vec!["a"; 100];
    let table: &[(JwtsvidRequest, &str)] = &[
        (jwt_request(&[], ""), "audience"),
        (jwt_request(&[""], ""), "audience"),
        (jwt_request(&["demo", ""], ""), "audience"),
        (jwt_request(&[&long], ""), "audience"),
        (jwt_request(&many, ""), "audience"),
        (jwt_request(&["demo"], "not-an-id"), "spiffe_id"),
        (jwt_request(&["demo"], "spiffe://TD/x"), "spiffe_id"),
    ];
    for (request, field) in table {
        let refused = client.fetch_jwtsvid(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(&format!("`{field}`")), "{}", refused.message());
    }
    for token in ["", "x", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
        let request = ValidateJwtsvidRequest { audience: "demo".to_owned(), svid: token.to_owned() };
        assert_eq!(client.validate_jwtsvid(request).await.unwrap_err().code(), Code::InvalidArgument, "{token}");
    }
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_message_and_messages_that_are_too_large_cost_only_their_call() {
    let agent = TestAgent::start().await;
    let mut raw = tonic::client::Grpc::new(agent.channel().await);
    raw.ready().await.unwrap();
    let mut request = Request::new(prost_types::Duration { seconds: 5, nanos: 7 }); // a number where a text belongs
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchJWTSVID");
    let codec = tonic_prost::ProstCodec::<prost_types::Duration, JwtsvidResponse>::default();
    let refused: Result<tonic::Response<JwtsvidResponse>, Status> = raw.unary(request, path, codec).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused.code(), Code::Internal | Code::InvalidArgument), "{refused}");
    assert!(refused.message().contains("decode"), "{refused}");

    let channel = agent.channel().await;
    let mut client = SpiffeWorkloadApiClient::with_interceptor(channel, Header);
    let svid = "a".repeat(agent.config().limits.workload_message.as_usize() + 1);
    let refused = client.validate_jwtsvid(ValidateJwtsvidRequest { audience: "demo".to_owned(), svid }).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("too large"), "{refused}");
    client.fetch_jwtsvid(jwt_request(&["demo"], "")).await.expect("the connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_a_users_limit_are_told_so_and_other_users_are_served() {
    let agent = TestAgent::configured(|config| {
        config.dev = false;
        config.limits.connections_per_uid = 2;
        let dir = config.state_dir.parent().unwrap().to_owned();
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(&config.entries_dir).unwrap();
        std::fs::create_dir(&config.policies_dir).unwrap();
    })
    .await;
    let entries = [uid(), NOBODY].map(|uid| {
        format!(
            "[[entry]]\nid = \"u{uid}\"\nspiffe_id = \"spiffe://dev.tether.internal/u{uid}\"\nmatch = [\"unix:uid:{uid}\"]\nowner = \"o\"\n"
        )
    });
    agent.write_entries("users.toml", &if is_root() { entries.concat() } else { entries[0].clone() }).await;
    let mut events = agent.audit();
    let held = [agent.channel().await, agent.channel().await];
    let told = Raw::connect(agent.socket()).await.until_closed().await;
    assert!(told.contains("too many connections are open by this user"), "{told:?}");
    assert!(told.contains("connections_per_uid"), "the limit is named: {told:?}");
    let refused = |event: &Event| matches!(event, Event::ConnectionRefused { reason: "too_many_connections", .. });
    event(&mut events, refused).await;

    if is_root() {
        std::fs::set_permissions(agent.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program::copied_to(agent.dir());
        let mut fetch = program.as_user(NOBODY, &["fetch", "x509", "--output", "json"]);
        fetch.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket().display()));
        let fetched = within(tokio::task::spawn_blocking(move || fetch.output().unwrap())).await.unwrap();
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        assert!(String::from_utf8_lossy(&fetched.stdout).contains(&format!("/u{NOBODY}\"")));
    }
    drop(held);
    // Its own place is free again as soon as the agent has seen the end of one.
    let again = async {
        while agent.state().connections() > 1 {
            tokio::task::yield_now().await;
        }
    };
    within(again).await;
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_a_users_limit_are_told_so_and_end_nothing_that_is_open() {
    let agent = TestAgent::configured(|config| config.limits.calls_per_uid = 1).await;
    let mut client = agent.workload().await;
    let mut open = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut open).await.unwrap();
    let refused = client.fetch_jwtsvid(jwt_request(&["demo"], "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("this user has 1 calls open already"), "{}", refused.message());
    agent.clock().advance(Duration::from_secs(9 * 60));
    next(&mut open).await.expect("the open stream is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_or_not_enough_are_closed_when_their_time_is_over() {
    let agent = TestAgent::configured(|config| config.limits.half_open = SHORT).await;
    let starts = [
        &b""[..],
        b"PRI * HTT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    let mut open = Vec::new();
    for start in starts {
        let mut raw = Raw::connect(agent.socket()).await;
        raw.send(start).await.unwrap();
        open.push(raw);
    }
    for (start, raw) in starts.iter().zip(open) {
        let told = raw.until_closed().await;
        assert!(told.contains("was not answered in time"), "{start:?}: {told:?}");
    }
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_never_reads_keeps_nobody_waiting() {
    let agent = TestAgent::start().await;
    let mut deaf = Raw::greeted(agent.socket()).await;
    let mut asked = 0;
    while asked < 2000 && deaf.try_send(&call(2 * asked + 1, "FetchX509SVID")) {
        asked += 1;
        if asked % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(asked > 0);
    for _ in 0..20 {
        serves(&agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_other_protocols_are_told_what_is_spoken_here_on_both_sockets() {
    let agent = TestAgent::start().await;
    let hello = [22u8, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for socket in [agent.socket(), agent.admin_socket()] {
        for start in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            &hello,
            &[0xff; 4096],
            &[0; 64],
            b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
        ] {
            let mut raw = Raw::connect(socket).await;
            raw.send(start).await.unwrap();
            let told = raw.until_closed().await;
            assert!(told.contains("does not start with the HTTP/2 preface"), "{start:?}: {told:?}");
        }
    }
    serves(&agent).await;
    agent.agent().await.status(StatusRequest {}).await.expect("the admin socket answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_lists_that_are_too_large_end_their_connection_only() {
    let agent = TestAgent::start().await;
    let mut other = agent.workload().await;
    for (values, bytes) in [(1, 100_000), (2000, 64)] {
        let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
        let mut request = Request::new(jwt_request(&["demo"], ""));
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        for _ in 0..values {
            request.metadata_mut().append("x-more", "a".repeat(bytes).parse().unwrap());
        }
        within(client.fetch_jwtsvid(request)).await.expect_err("no request has such headers");
        other.fetch_jwtsvid(jwt_request(&["demo"], "")).await.expect("others are served on open connections");
    }
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_that_are_taken_back_is_cut_off() {
    let agent = TestAgent::start().await;
    let mut flood = Raw::greeted(agent.socket()).await;
    for number in 0..20_000 {
        let stream = 2 * number + 1;
        if flood.send(&[call(stream, "FetchX509SVID"), reset(stream)].concat()).await.is_err() {
            break; // cut while we were writing
        }
    }
    drop(flood.until_closed().await);
    serves(&agent).await;
}

/// Entry files with one mistake each: the text, the place, and a word of the message.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("[[entry]\n", ":1:", ""),
    ("[[entry]]\nid = \"a\"\nspiffe = \"x\"\n", ":3:1", "spiffe"),
    ("[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://other.test/x\"\nmatch = [\"unix:uid:1\"]\n", ":3:", "other.test"),
    (
        "[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/tether/x\"\nmatch = [\"unix:uid:1\"]\n",
        ":3:",
        "reserved",
    ),
    ("[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = []\n", ":4:", "match"),
    (
        "[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = [\"unix:shoe:1\"]\n",
        ":4:",
        "unix:shoe:1",
    ),
    (
        "[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/{unix.shoe}\"\nmatch = [\"unix:uid:1\"]\n",
        ":3:",
        "shoe",
    ),
    (
        "[[entry]]\nid = \"a b\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = [\"unix:uid:1\"]\n",
        ":2:",
        "a b",
    ),
    (
        "[[entry]]\nid = \"dev\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = [\"unix:uid:1\"]\n",
        ":1:1",
        "dev",
    ),
    (
        "[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = [\"unix:uid:1\"]\nx509_ttl = \"100y\"\n",
        ":5:",
        "",
    ),
    ("[[entry]]\nid = \"a\"\nspiffe_id = \"spiffe://dev.tether.internal/x\"\nmatch = \"unix:uid:1\"\n", ":4:", "match"),
    ("[[entry]]\nid = \"a\"\nid = \"b\"\n", ":3:", ""),
    ("[[entri]]\nid = \"a\"\n", ":1:", "entri"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_file_with_a_mistake_changes_nothing_and_its_place_is_told_everywhere() {
    let agent = TestAgent::configured(|config| config.http.address = Some(LOCAL.parse().unwrap())).await;
    let good = format!(
        "[[entry]]\nid = \"kept\"\nspiffe_id = \"spiffe://dev.tether.internal/kept\"\nmatch = [\"unix:uid:{}\"]\n",
        uid()
    );
    agent.write_entries("good.toml", &good).await;
    let mut stream = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();
    let mut admin = agent.agent().await;
    for (text, place, word) in MISTAKES {
        let mut events = agent.audit();
        agent.write_entries("bad.toml", text).await;
        let named = |told: &str| told.contains(&format!("bad.toml{place}")) && told.contains(word);
        let refused = event(&mut events, |event| matches!(event, Event::EntriesRefused { .. })).await;
        let Event::EntriesRefused { mistakes } = refused else { unreachable!() };
        assert!(named(&mistakes.join("\n")), "{text}\n{mistakes:?}");
        let status = admin.status(StatusRequest {}).await.unwrap().into_inner().json;
        assert!(named(&status.replace("\\\"", "\"")), "{text}\n{status}");
        // The audit event comes after both.
        let (code, body) = get(agent.http(), "/readyz/entries").await;
        assert!(code == 503 && named(&body), "{text}\n{body}");
        let (_, metrics) = get(agent.http(), "/metrics").await;
        assert!(metrics.contains("tether_entries_load_success 0\n"), "{metrics}");
        // A good file between two bad ones, so that the next one is news.
        agent.remove_entries("bad.toml").await;
    }
    let mut again = agent.workload().await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut again).await.unwrap(), before, "the entries before stayed in force");
    let good_again = async { while get(agent.http(), "/readyz/entries").await.0 != 200 {} };
    within(good_again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_entry_can_be_in_are_named() {
    let agent = TestAgent::start().await;
    let dir = &agent.config().entries_dir;
    std::fs::create_dir(dir.join("directory.toml")).unwrap();
    let load = agent.state().registry().reload().await;
    assert!(!load.ok && load.mistakes[0].to_string().contains("directory.toml"), "{load:?}");
    std::fs::remove_dir(dir.join("directory.toml")).unwrap();
    std::fs::write(dir.join("latin1.toml"), b"[[entry]]\nid = \"\xe9\"\n").unwrap();
    let load = agent.state().registry().reload().await;
    assert!(!load.ok && load.mistakes[0].to_string().contains("latin1.toml"), "{load:?}");
    serves(&agent).await;
}

/// A tmpfs of so many KiB that is gone with this value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn stored(id: &str) -> CreateEntryRequest {
    let toml =
        format!("id = \"{id}\"\nspiffe_id = \"spiffe://dev.tether.internal/{id}\"\nmatch = [\"unix:uid:4242\"]\n");
    CreateEntryRequest { toml }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_changes_are_refused_and_nothing_is_lost_and_svids_go_on_where_the_log_only_alarms() {
    if !is_root() {
        return eprintln!("not tried: mounting a small file system takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(&dir.path().join("disk"), "size=8m,mode=0700");
    let configure = |config: &mut Config| {
        *config = config_in(&disk.0);
        // With "refuse" nothing more is issued: `audit` has that.
        config.audit.on_failure = OnAuditFailure::Alarm;
    };
    let mut agent = TestAgent::configured(configure).await;
    agent.entries().await.create(stored("first")).await.unwrap();
    let filler = disk.0.join("filler");
    let filled = std::fs::write(&filler, vec![0; 16 << 20]);
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let mut refused = None;
    for number in 0..2000 {
        // The store has some room inside its file; then it must grow.
        let mut request = stored(&format!("more-{number}"));
        request.toml.push_str(&format!("owner = \"{}\"\n", "o".repeat(200)));
        if let Err(status) = agent.entries().await.create(request).await {
            refused = Some((number, status));
            break;
        }
    }
    let (number, refused) = refused.expect("a full disk is noticed");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("nothing was changed"), "{refused}");
    serves(&agent).await;
    let absent = agent.entries().await.get(GetEntryRequest { id: format!("more-{number}") }).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound, "what was refused is not half there");

    std::fs::remove_file(filler).unwrap();
    agent.restart().await;
    let id = "first".to_owned();
    agent.entries().await.get(GetEntryRequest { id }).await.expect("what was stored is there");
    agent.entries().await.create(stored("last")).await.expect("with room again it can be changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written_is_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    if is_root() {
        let disk = Tmpfs::mount(&dir.path().join("disk"), "ro,size=1m,mode=0700");
        let mut config = config_in(dir.path());
        config.state_dir = disk.0.join("state");
        let why = refused_start(config).await;
        assert!(why.contains(&disk.0.display().to_string()) && why.contains("Read-only"), "{why}");
    }
    let config = config_in(dir.path());
    let open = |path: &Path, mode| {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(config.state_dir.parent().unwrap(), 0o700);
    open(&config.state_dir, 0o755);
    let state_dir = config.state_dir.display().to_string();
    let why = refused_start(config).await;
    assert!(why.contains(&state_dir) && why.contains("0700"), "others could read the keys: {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_without_its_copy_stops_the_start_and_is_left_as_it_is() {
    let mut agent = TestAgent::start().await;
    agent.stop().await;
    let path = agent.config().state_dir.join("store.redb");
    let whole = std::fs::read(&path).unwrap();
    std::fs::remove_file(path.with_extension("copy")).unwrap();
    for (name, damaged) in [
        ("rubbish", vec![0x5a; whole.len()]),
        ("half", whole[..whole.len() / 2].to_vec()),
        ("text", b"hello".to_vec()),
        ("nothing", Vec::new()),
    ] {
        std::fs::write(&path, &damaged).unwrap();
        let why = refused_start(agent.config().clone()).await;
        assert!(why.contains("store.redb") && why.contains("damaged"), "{name}: {why}");
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "{name}: evidence, and perhaps repairable");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(refused_start(agent.config().clone()).await.contains("restore"), "its keys are not thrown away");
    std::fs::write(&path, &whole).unwrap();
    agent.restart().await;
    serves(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_dead_agent_left_is_replaced_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let prepared = || {
        let at = config.listen.workload.parent().unwrap();
        std::fs::create_dir_all(at).unwrap();
        std::fs::set_permissions(at.parent().unwrap(), std::fs::Permissions::from_mode(0o700)).unwrap();
    };
    prepared();
    let living = UnixListener::bind(&config.listen.workload).unwrap();
    let why = refused_start(config.clone()).await;
    assert!(why.contains("workload.sock"), "{why}");
    drop(living);
    assert!(config.listen.workload.exists(), "now it is what a dead agent leaves");
    drop(agent::build(config.clone(), Deps::default()).await.expect("it is replaced"));

    std::fs::write(&config.listen.workload, "somebody's file").unwrap();
    let why = refused_start(config.clone()).await;
    assert!(why.contains("workload.sock"), "{why}");
    assert_eq!(std::fs::read(&config.listen.workload).unwrap(), b"somebody's file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_directory_is_refused_and_the_first_serves_on() {
    let agent = TestAgent::start().await;
    let why = refused_start(agent.config().clone()).await;
    assert!(why.contains("another agent uses"), "{why}");
    serves(&agent).await;
}
