//! The two gRPC servers: services put together, served until the drain begins.

use futures_util::Stream;
use tonic::service::Routes;
use tonic::transport::{Error, Server};

use super::admin::Admin;
use super::gate::HeaderLayer;
use super::workload::Workload;
use crate::base::drain;
use crate::peer::{Listener, PeerStream};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::agent_server::AgentServer;
use crate::proto::admin::authorities_server::AuthoritiesServer;
use crate::proto::admin::bundles_server::BundlesServer;
use crate::proto::admin::entries_server::EntriesServer;
use crate::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;

const WORKLOAD_API: &str = "SpiffeWorkloadAPI";
/// A request's headers; the wire layer allows no larger ones.
const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// Limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in progress on one connection.
    pub streams_per_connection: u32,
    /// The largest request on the workload socket, in bytes.
    pub workload_message: usize,
    /// The largest request on the admin socket, in bytes.
    pub admin_message: usize,
}

/// Serves the Workload Endpoint: the Workload API, health and reflection, each behind the endpoint's metadata.
pub async fn workload(
    listener: Listener,
    service: Workload,
    limits: Limits,
    drain: drain::Watcher,
) -> Result<(), (&'static str, Error)> {
    let api = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(limits.workload_message);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(WORKLOAD_API, tonic_health::ServingStatus::Serving).await;
    let routes = reflection(&[WORKLOAD_API]).add_service(api).add_service(health_service);
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .layer(HeaderLayer)
        .add_routes(routes);
    let served = server.serve_with_incoming_shutdown(accepted(listener, drain.clone()), begun(drain)).await;
    served.map_err(|error| ("workload", error))
}

/// Serves the admin API and reflection.
pub async fn admin(
    listener: Listener,
    service: Admin,
    limits: Limits,
    drain: drain::Watcher,
) -> Result<(), (&'static str, Error)> {
    let size = limits.admin_message;
    let names = ["Agent", "Authorities", "Bundles", "Entries"].map(|name| format!("tether.admin.v1.{name}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let routes = reflection(&names)
        .add_service(EntriesServer::new(service.clone()).max_decoding_message_size(size))
        .add_service(AgentServer::new(service.clone()))
        .add_service(AuthoritiesServer::new(service.clone()))
        .add_service(BundlesServer::new(service).max_decoding_message_size(size));
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .add_routes(routes);
    let served = server.serve_with_incoming_shutdown(accepted(listener, drain.clone()), begun(drain)).await;
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
fn accepted(listener: Listener, mut drain: drain::Watcher) -> impl Stream<Item = std::io::Result<PeerStream>> + Send {
    use futures_util::StreamExt;
    listener.incoming().take_until(async move { drain.draining().await })
}

async fn begun(mut drain: drain::Watcher) {
    drain.draining().await;
}
