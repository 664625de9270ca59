//! A process that does as it is told (see [`crate::orders`]): a workload, a thief or a tool. Who it is follows from where
//! and as what it was started, as for anybody.

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;
use tether::proto::admin::ApproveRequest;
use tether::proto::admin::approvals_client::ApprovalsClient;
use tether::proto::session as held;
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::session::verifier_client::VerifierClient;
use tether::proto::workload as wire;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::x509::{Chain, PrivateKey};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{ROLE, say};
use crate::harness::{Header, Workload, channel};
use crate::orders::{Answer, Begin, Held, Named, Order, Refused, Verdict, Wit, X509};
use crate::tls;

/// Carries out one order after the other. Says that it is there first, also after it became another program.
pub fn obey(socket: &str) {
    answer(&value(&"ready"));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let order: Order = serde_json::from_str(&line).unwrap();
        // Its connections end with it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        answer(&runtime.block_on(carry_out(Path::new(socket), order)));
    }
}

fn answer(answer: &Answer) {
    say(&serde_json::to_string(answer).unwrap());
}

fn value(value: &impl Serialize) -> Answer {
    Ok(serde_json::to_value(value).unwrap())
}

async fn carry_out(socket: &Path, order: Order) -> Answer {
    match order {
        Order::FetchX509 => value(&fetch_x509(socket).await?),
        Order::FetchJwt(audience) => {
            let request = wire::JwtsvidRequest { audience: vec![audience], spiffe_id: String::new() };
            let mut svids = workload(socket).await.fetch_jwtsvid(request).await?.into_inner().svids;
            value(&svids.remove(0).svid)
        }
        Order::FetchWit => {
            let svid = first(workload(socket).await.fetch_witsvid(wire::WitsvidRequest::default())).await?.svids;
            value(&Wit { token: svid[0].wit_svid.clone(), key: svid[0].wit_svid_key.clone() })
        }
        Order::HoldX509(other) => {
            let request = held::HoldX509Request { spiffe_id: String::new(), on_behalf_of: named(other) };
            let svid = first(sessions(socket).await.hold_x509(request)).await?.svids.remove(0);
            let document = svid.x509_svid.iter().map(|byte| format!("{byte:02x}")).collect();
            value(&Held { key: svid.key, document, binding: 0 })
        }
        Order::HoldWit(other) => {
            let request = held::HoldWitRequest { spiffe_id: String::new(), on_behalf_of: named(other) };
            let held = sessions(socket).await.hold_wit(request).await?.into_inner();
            value(&Held { key: held.key, document: held.wit_svid, binding: held.binding })
        }
        Order::SignTls { key, scheme, content, on_behalf_of } => {
            let on_behalf_of = named(on_behalf_of);
            let request = held::SignTlsRequest { key, scheme, content: content.into(), on_behalf_of };
            value(&sessions(socket).await.sign_tls(request).await?.into_inner().signature.to_vec())
        }
        Order::Prove { key, method, uri, on_behalf_of } => {
            let on_behalf_of = named(on_behalf_of);
            let request = held::ProveRequest { key, method, uri, on_behalf_of, ..held::ProveRequest::default() };
            value(&sessions(socket).await.prove(request).await?.into_inner().headers)
        }
        Order::Check { method, uri, headers } => {
            let request = held::CheckRequest { method, uri, headers, ..held::CheckRequest::default() };
            let mut verifier = VerifierClient::with_interceptor(channel(socket).await, Header);
            let checked = verifier.check(request).await?.into_inner();
            value(&Verdict { active: checked.active, reason: checked.reason })
        }
        Order::Validate { audience, token } => {
            let request = wire::ValidateJwtsvidRequest { audience, svid: token };
            value(&workload(socket).await.validate_jwtsvid(request).await?.into_inner().spiffe_id)
        }
        Order::Start(begin) => value(&sessions(socket).await.start(start(begin)).await?.into_inner().id),
        Order::Delegate { session, child } => {
            let request = held::DelegateRequest { session, child: Some(start(child)) };
            value(&sessions(socket).await.delegate(request).await?.into_inner().id)
        }
        Order::ProveIn { session, method, uri } => {
            let request = held::ProveRequest { session, method, uri, ..held::ProveRequest::default() };
            value(&sessions(socket).await.prove(request).await?.into_inner().headers)
        }
        Order::Mint { session, target, bearer } => {
            let kind = if bearer { held::mint_request::Kind::Jwt } else { held::mint_request::Kind::Wit };
            let request = held::MintRequest { session, target, kind: kind.into(), ..Default::default() };
            let minted = sessions(socket).await.mint(request).await?.into_inner();
            value(&Held { key: minted.id, document: minted.token, binding: minted.binding })
        }
        Order::Look(session) => value(
            &sessions(socket)
                .await
                .get(held::GetRequest { session, ..Default::default() })
                .await?
                .into_inner()
                .end_reason,
        ),
        Order::List => {
            let listed = sessions(socket).await.list(held::ListRequest { all: true }).await?.into_inner().sessions;
            value(&listed.into_iter().map(|session| session.id).collect::<Vec<_>>())
        }
        Order::Watch(session) => {
            let request = held::WatchRequest { session, ..Default::default() };
            value(&first(sessions(socket).await.watch(request)).await?.id)
        }
        Order::EndSession(session) => {
            value(&sessions(socket).await.end(held::EndRequest { session }).await?.into_inner().end_reason)
        }
        Order::Report { session, txn } => {
            let outcome = held::report_request::Outcome::Done.into();
            let request = held::ReportRequest { session, txn, outcome, ..held::ReportRequest::default() };
            VerifierClient::with_interceptor(channel(socket).await, Header).report(request).await?;
            value(&"taken")
        }
        Order::Approve { at, id } => {
            let request = ApproveRequest { id, uses: 1, ..ApproveRequest::default() };
            value(&ApprovalsClient::new(channel(&at).await).approve(request).await?.into_inner().state)
        }
        Order::KeepOrphans => {
            nix::sys::prctl::set_child_subreaper(true).unwrap();
            value(&"done")
        }
        Order::ByChild(order) => by_another(Command::new(std::env::current_exe().unwrap()).arg(socket), false, &order),
        Order::ByOrphan(order) => {
            // The shell is gone when the order is given.
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec 3<&0; \"$0\" \"$1\" <&3 &"]).arg(std::env::current_exe().unwrap()).arg(socket);
            by_another(&mut shell, true, &order)
        }
        Order::Handshake { at, chain, key } => match tls::connect(&at, &chain, &key) {
            Ok(()) => value(&"accepted"),
            Err(error) => Err(Refused { code: "tls".to_owned(), denial: String::new(), message: error.to_string() }),
        },
        Order::Exec(program) => {
            let error = Command::new(program).arg(socket).env(ROLE, "workload").exec();
            panic!("the program is there: {error}");
        }
        Order::BecomeUser(uid) => {
            let uid = nix::unistd::Uid::from_raw(uid);
            nix::unistd::setresuid(uid, uid, uid).unwrap();
            value(&"done")
        }
        Order::ForbidTracing => {
            nix::sys::prctl::set_dumpable(false).unwrap();
            value(&"done")
        }
        Order::EnterCgroup(directory) => {
            std::fs::write(directory.join("cgroup.procs"), "0").unwrap();
            value(&"done")
        }
    }
}

/// Has another process of this role, which a command starts, carry out one order.
fn by_another(command: &mut Command, command_ends: bool, order: &Order) -> Answer {
    let command = command.env(ROLE, "workload").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut said = output.lines().map_while(Result::ok);
    assert_eq!(said.next().as_deref(), Some(r#"{"Ok":"ready"}"#));
    if command_ends {
        child.wait().unwrap();
    }
    writeln!(input, "{}", serde_json::to_string(order).unwrap()).unwrap();
    let answer = said.next().expect("it answers");
    drop(input);
    child.wait().unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn start(begin: Begin) -> held::StartRequest {
    let process = begin.process.map(|named| held::Process { pid: named.pid, pidfs_inode: named.inode });
    let boundary = if begin.one_call { held::Boundary::ToolCall } else { held::Boundary::Unspecified };
    let scope = if begin.tree { held::Scope::Tree } else { held::Scope::Process };
    held::StartRequest {
        purpose: begin.purpose,
        targets: begin.targets,
        scopes: begin.scopes,
        boundary: boundary.into(),
        budget: Some(held::Budget { max_tokens: 0, max_calls: begin.calls }),
        ttl_seconds: begin.seconds,
        scope: scope.into(),
        process,
        ..held::StartRequest::default()
    }
}

/// Has a process of this role below this one, which waits for its end: what the two are told goes to the one below.
pub fn above(socket: &str) {
    let program = std::env::current_exe().unwrap();
    Command::new(program).arg(socket).env(ROLE, "workload").spawn().unwrap().wait().unwrap();
}

async fn fetch_x509(socket: &Path) -> Result<X509, Status> {
    let svid = first(workload(socket).await.fetch_x509svid(wire::X509svidRequest {})).await?.svids.remove(0);
    let chain = Chain::from_der(&svid.x509_svid).unwrap().to_pem();
    let key = PrivateKey::from_pkcs8(&svid.x509_svid_key).unwrap().to_pem().unwrap();
    Ok(X509 { chain, key: key.expose().clone() })
}

/// The first message of a stream, which is then closed.
async fn first<T>(stream: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>) -> Result<T, Status> {
    let mut stream = stream.await?.into_inner();
    Ok(stream.message().await?.expect("a stream begins with a message"))
}

fn named(other: Option<Named>) -> Option<held::OnBehalfOf> {
    other.map(Into::into)
}

async fn workload(socket: &Path) -> Workload {
    SpiffeWorkloadApiClient::with_interceptor(channel(socket).await, Header)
}

async fn sessions(socket: &Path) -> SessionsClient<InterceptedService<Channel, Header>> {
    SessionsClient::with_interceptor(channel(socket).await, Header)
}
