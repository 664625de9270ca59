//! Calls as a client makes them that takes no care: any method, any metadata.

use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::harness::{TestAgent, within};

/// The calls of the Workload API, all seven.
pub const RPCS: [&str; 7] = [
    "/SpiffeWorkloadAPI/FetchX509SVID",
    "/SpiffeWorkloadAPI/FetchX509Bundles",
    "/SpiffeWorkloadAPI/FetchJWTSVID",
    "/SpiffeWorkloadAPI/FetchJWTBundles",
    "/SpiffeWorkloadAPI/ValidateJWTSVID",
    "/SpiffeWorkloadAPI/FetchWITSVID",
    "/SpiffeWorkloadAPI/FetchWITBundles",
];

/// The other services on the workload socket.
pub const BESIDE: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Calls a method with an empty message, with these values of `workload.spiffe.io`, up to its first answer.
///
/// Any kind of method is called as a server stream: the bytes of a request are the same.
pub async fn call(channel: Channel, method: &str, header: &[&str]) -> Result<(), Status> {
    let mut request = Request::new(());
    for value in header {
        let value: MetadataValue<_> = value.parse().expect("a header value");
        request.metadata_mut().append("workload.spiffe.io", value);
    }
    let mut client = tonic::client::Grpc::new(channel);
    within(async {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let path = PathAndQuery::try_from(method.to_owned()).expect("a method's path");
        let answer = client.server_streaming(request, path, ProstCodec::<(), ()>::default()).await?;
        answer.into_inner().message().await.map(drop)
    })
    .await
}

/// The same on a new connection to an agent.
pub async fn call_agent(agent: &TestAgent, method: &str, header: &[&str]) -> Result<(), Status> {
    call(agent.channel().await, method, header).await
}
