//! A process that does as it is told (see [`crate::orders`]): a workload, a thief or a tool. Who it is follows from where
//! and as what it was started, as for anybody.

use std::future::Future;
use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
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
use crate::orders::{Answer, Held, Named, Order, Refused, Verdict, Wit, X509};
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
