//! Two agents in two network namespaces that one wire joins: a tool on one is called in sessions of the other, while the
//! wire holds, and while it does not. Takes root, `ip` and `nsenter`.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use tether::proto::admin::StatusRequest;
use tether::proto::admin::agent_client::AgentClient;
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::session::verifier_client::VerifierClient;
use tether::proto::session::{CheckRequest, CheckResponse, ProveRequest};

use crate::harness::{Header, Sessions, channel, within};
use crate::nodes::write_root;
use crate::program::{AgentProcess, is_root};
use crate::sessions::task;

const TOOL: &str = "https://tool.example.com/";
const URI: &str = "https://tool.example.com/charge";

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).output();
    run.is_ok_and(|output| output.status.success())
}

/// Two namespaces and the wire; gone when this is dropped.
struct Wire {
    names: [String; 2],
}

impl Wire {
    /// `None` where this host does not let us.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let wire = Self { names: [format!("tt-a{id}"), format!("tt-b{id}")] };
        let [a, b] = &wire.names;
        let commands = [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add wire netns {a} type veth peer name wire netns {b}"),
            format!("-n {a} addr add 192.0.2.1/30 dev wire"),
            format!("-n {b} addr add 192.0.2.2/30 dev wire"),
            format!("-n {a} link set wire up"),
            format!("-n {b} link set wire up"),
        ];
        commands.iter().all(|command| ip(command)).then_some(wire)
    }

    /// Cuts it at the far end: what is sent gets no answer, and no refusal either.
    fn cut(&self) {
        assert!(ip(&format!("-n {} addr flush dev wire", self.names[0])));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// An agent in one of the namespaces.
fn agent(namespace: &str, dir: &Path, root: &Path, settings: &[String]) -> AgentProcess {
    let file = |name: &str| root.join(name).display().to_string();
    let mut all = vec![
        "authority.kind=disk".to_owned(),
        format!("authority.cert_file={}", file("root.pem")),
        format!("authority.key_file={}", file("root_key.pem")),
    ];
    all.extend_from_slice(settings);
    let arguments: Vec<&str> = all.iter().flat_map(|setting| ["--set", setting]).collect();
    AgentProcess::in_network(namespace, dir, &arguments)
}

async fn node_id(agent: &AgentProcess) -> String {
    let mut admin = AgentClient::new(channel(&agent.admin()).await);
    let status = admin.status(StatusRequest {}).await.unwrap().into_inner().json;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["node"].as_str().unwrap().to_owned()
}

async fn prove(sessions: &mut Sessions, session: &str) -> HashMap<String, String> {
    let (session, method, uri) = (session.to_owned(), "POST".to_owned(), URI.to_owned());
    let request = ProveRequest { session, method, uri, ..ProveRequest::default() };
    sessions.prove(request).await.unwrap().into_inner().headers
}

async fn check(agent: &AgentProcess, headers: HashMap<String, String>) -> CheckResponse {
    let mut verifier = VerifierClient::with_interceptor(channel(&agent.workload()).await, Header);
    let request = CheckRequest { method: "POST".to_owned(), uri: URI.to_owned(), headers, ..CheckRequest::default() };
    within(verifier.check(request)).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_wire_between_two_hosts_a_session_is_good_while_its_node_answers() {
    if !is_root() {
        eprintln!("skipped: network namespaces take root");
        return;
    }
    let Some(wire) = Wire::new() else {
        eprintln!("skipped: no network namespaces here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    write_root(dir.path());
    let (dirs, addresses) = ([dir.path().join("a"), dir.path().join("b")], ["192.0.2.1:9466", "192.0.2.2:9466"]);
    let mut ids = Vec::new();
    for (namespace, own) in wire.names.iter().zip(&dirs) {
        std::fs::create_dir(own).unwrap();
        let first = agent(namespace, own, dir.path(), &[]);
        ids.push(node_id(&first).await);
        first.stop();
    }
    let settings = |own: usize, other: usize| {
        [
            format!("http.tls_address={}", addresses[own]),
            format!("sessions.introspect_url=https://{}", addresses[own]),
            format!("sessions.nodes={}=https://{}", ids[other], addresses[other]),
        ]
    };
    let issuing = agent(&wire.names[0], &dirs[0], dir.path(), &settings(0, 1));
    let asking = agent(&wire.names[1], &dirs[1], dir.path(), &settings(1, 0));

    let mut sessions = SessionsClient::with_interceptor(channel(&issuing.workload()).await, Header);
    let session = sessions.start(task("billing", &[TOOL])).await.unwrap().into_inner().id;
    // Proofs from before a verifier began to remember are refused: it minds whole seconds.
    let answer = within(async {
        loop {
            let answer = check(&asking, prove(&mut sessions, &session).await).await;
            if !["before_start", "node_unreachable"].contains(&answer.reason.as_str()) {
                return answer;
            }
        }
    })
    .await;
    assert!(answer.active, "{answer:?}");
    assert_eq!((answer.session, answer.purpose.as_str()), (session.clone(), "billing"));

    let headers = prove(&mut sessions, &session).await;
    wire.cut();
    assert_eq!(within(check(&asking, headers)).await.reason, "node_unreachable", "who asks does not wait for ever");
    assert!(check(&issuing, prove(&mut sessions, &session).await).await.active, "at home it is good as before");
}
