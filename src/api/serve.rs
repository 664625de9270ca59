//! The two gRPC servers: services put together, served until the drain begins.

use futures_util::{Stream, StreamExt, TryStreamExt};
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::{Error, Server};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::admin::Admin;
use super::connection::Connection;
use super::export::ExportApi;
use super::gate::{DeadlineLayer, RoleLayer, SecretsLayer, WorkloadGate};
use super::sds::{Plain, Secrets};
use super::sessions::{SessionApi, VerifierApi};
use super::workload::Workload;
use crate::base::drain;
use crate::http::Readiness;
use crate::peer::Listener;
use crate::proto::DESCRIPTORS;
use crate::proto::admin::agent_server::AgentServer;
use crate::proto::admin::approvals_server::ApprovalsServer;
use crate::proto::admin::audit_log_server::AuditLogServer;
use crate::proto::admin::authorities_server::AuthoritiesServer;
use crate::proto::admin::bundles_server::BundlesServer;
use crate::proto::admin::credentials_server::CredentialsServer;
use crate::proto::admin::entries_server::EntriesServer;
use crate::proto::admin::policies_server::PoliciesServer;
use crate::proto::admin::session_admin_server::SessionAdminServer;
use crate::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use crate::proto::export::exports_server::ExportsServer;
use crate::proto::session::sessions_server::SessionsServer;
use crate::proto::session::verifier_server::VerifierServer;
use crate::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;

const WORKLOAD_API: &str = "SpiffeWorkloadAPI";
const EXPORTS: &str = "tether.export.v1.Exports";
const SESSIONS: [&str; 2] = ["tether.session.v1.Sessions", "tether.session.v1.Verifier"];
const SECRETS: &str = "envoy.service.secret.v3.SecretDiscoveryService";
/// The largest request for secrets: Envoy tells all about itself in the first one, and what is not needed is not kept.
const SECRETS_MESSAGE_BYTES: usize = 1024 * 1024;
/// A request's headers; the wire layer allows no larger ones.
const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// Limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in progress on one connection.
    pub streams_per_connection: u32,
    /// The largest request on the workload socket, in bytes.
    pub workload_message: usize,
    /// The largest set of entries or bundle on the admin socket, in bytes.
    pub admin_message: usize,
}

/// How a server is told to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Nobody is let in any more, streams end, and clients are told to hang up.
    pub drain: drain::Watcher,
    /// Connections that are still there are cut.
    pub cut: drain::Watcher,
}

/// What the workload socket offers beside health and reflection.
#[derive(Clone, Debug)]
pub struct Services {
    /// The Workload API.
    pub workload: Workload,
    /// What may be written to files.
    pub exports: ExportApi,
    /// Tasks and held keys, and what tools ask, where they are on.
    pub sessions: Option<(SessionApi, VerifierApi)>,
    /// Envoy's Secret Discovery Service, where it is on.
    pub secrets: Option<Secrets>,
}

/// Serves the Workload Endpoint: the Workload API, our own services where they are on, health and reflection, each
/// behind the gate.
pub async fn workload(
    listener: Listener,
    services: Services,
    gate: WorkloadGate,
    readiness: Readiness,
    limits: Limits,
    stop: Stop,
) -> Result<(), (&'static str, Error)> {
    let Services { workload, exports, sessions, secrets } = services;
    let api = SpiffeWorkloadApiServer::new(workload).max_decoding_message_size(limits.workload_message);
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut names = vec![WORKLOAD_API, EXPORTS];
    names.extend(SESSIONS.iter().filter(|_| sessions.is_some()));
    names.extend(secrets.iter().map(|_| SECRETS));
    let exports = ExportsServer::new(exports).max_decoding_message_size(limits.workload_message);
    let mut routes = reflection(&names).add_service(api).add_service(exports).add_service(health_service);
    if let Some((sessions, verifier)) = sessions {
        let (keys, verifier) = (SessionsServer::new(sessions), VerifierServer::new(verifier));
        routes = routes
            .add_service(keys.max_decoding_message_size(limits.workload_message))
            .add_service(verifier.max_decoding_message_size(limits.workload_message));
    }
    if let Some(secrets) = secrets {
        let largest = SECRETS_MESSAGE_BYTES.max(limits.workload_message);
        let secrets = SecretDiscoveryServiceServer::new(secrets).max_decoding_message_size(largest);
        routes = routes.add_service(Plain(secrets));
    }
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .layer(SecretsLayer)
        .layer(InterceptorLayer::new(gate))
        .layer(DeadlineLayer { stop: stop.drain.clone() })
        .add_routes(routes);
    let served = server.serve_with_incoming_shutdown(accepted(listener, stop.clone()), begun(stop.drain));
    tokio::select! {
        served = served => served.map_err(|error| ("workload", error)),
        () = report_health(health, readiness) => Ok(()),
    }
}

/// Keeps the health service true to the agent's readiness, for as long as it is polled.
async fn report_health(health: HealthReporter, readiness: Readiness) {
    let mut changes = readiness.watch();
    loop {
        let ready = changes.borrow_and_update().values().all(Result::is_ok);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", WORKLOAD_API] {
            health.set_service_status(service, status).await;
        }
        if changes.changed().await.is_err() {
            // Whoever set the readiness is gone; the last word stands.
            std::future::pending::<()>().await;
        }
    }
}

/// Serves the admin API and reflection, to whoever the gate lets through.
pub async fn admin(
    listener: Listener,
    service: Admin,
    gate: RoleLayer,
    limits: Limits,
    stop: Stop,
) -> Result<(), (&'static str, Error)> {
    let large = limits.admin_message;
    let names = [
        "Agent",
        "Approvals",
        "AuditLog",
        "Authorities",
        "Bundles",
        "Credentials",
        "Entries",
        "Policies",
        "SessionAdmin",
    ]
    .map(|name| format!("tether.admin.v1.{name}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Only who has a role reaches the two services that take large messages.
    let routes = reflection(&names)
        .add_service(EntriesServer::new(service.clone()).max_decoding_message_size(large))
        .add_service(BundlesServer::new(service.clone()).max_decoding_message_size(large))
        .add_service(AgentServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(ApprovalsServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(PoliciesServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(SessionAdminServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(AuditLogServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(CredentialsServer::new(service.clone()).max_decoding_message_size(limits.workload_message))
        .add_service(AuthoritiesServer::new(service).max_decoding_message_size(limits.workload_message));
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .layer(gate)
        .layer(DeadlineLayer { stop: stop.drain.clone() })
        .add_routes(routes);
    let served = server.serve_with_incoming_shutdown(accepted(listener, stop.clone()), begun(stop.drain)).await;
    served.map_err(|error| ("admin", error))
}

/// Server reflection in both versions that clients speak (SPIFFE Workload Endpoint, section 7).
fn reflection(services: &[&str]) -> Routes {
    let builder = || {
        let all = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
        services.iter().fold(all, |builder, service| builder.with_service_name(*service))
    };
    let (new, old) = (builder().build_v1(), builder().build_v1alpha());
    let routes = Routes::new(new.expect("the descriptors were made by our own build"));
    routes.add_service(old.expect("the descriptors were made by our own build"))
}

/// Connections until the drain begins; the listener and its socket file go with this stream.
fn accepted(listener: Listener, stop: Stop) -> impl Stream<Item = std::io::Result<Connection>> + Send {
    let Stop { mut drain, cut } = stop;
    let connections = listener.incoming().map_ok(move |stream| Connection::new(stream, cut.clone()));
    connections.take_until(async move { drain.draining().await })
}

async fn begun(mut drain: drain::Watcher) {
    drain.draining().await;
}
