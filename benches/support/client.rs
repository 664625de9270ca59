//! Workload API clients as SPIFFE clients make them.

use std::path::Path;

use tether::client::{Endpoint, SecurityHeader, channel, with_header};
use tether::proto::session::sessions_client::SessionsClient;
use tether::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tether::proto::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use tonic::codegen::InterceptedService;
use tonic::transport::Channel;

use super::Result;

/// A client on a connection of its own.
pub type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// A client of the socket at `path`. It connects with its first call.
pub fn client(path: &Path) -> Result<Client> {
    let endpoint = Endpoint::parse(&format!("unix://{}", path.display()))?;
    Ok(of_endpoint(&endpoint))
}

/// A client of an endpoint. It connects with its first call.
pub fn of_endpoint(endpoint: &Endpoint) -> Client {
    SpiffeWorkloadApiClient::new(with_header(channel(endpoint)))
}

/// A client of tether's own service for keys it holds.
pub type Sessions = SessionsClient<InterceptedService<Channel, SecurityHeader>>;

/// A client of that service at `path`. It connects with its first call.
pub fn sessions(path: &Path) -> Result<Sessions> {
    let endpoint = Endpoint::parse(&format!("unix://{}", path.display()))?;
    Ok(SessionsClient::new(with_header(channel(&endpoint))))
}

/// The first message of a new X.509 stream, which is given up then.
pub async fn first_x509(client: &mut Client) -> Result<X509svidResponse> {
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await?.into_inner();
    stream.message().await?.ok_or_else(|| "the stream ended before its first message".into())
}

/// One token.
pub async fn jwt_svid(client: &mut Client, audience: &str) -> Result<String> {
    let request = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let answer = client.fetch_jwtsvid(request).await?.into_inner();
    Ok(answer.svids.into_iter().next().ok_or("an answer without a token")?.svid)
}

/// One token; what an empty server answers has none. The answer's size in tokens.
pub async fn jwt(client: &mut Client, audience: &str) -> Result<usize> {
    let request = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    Ok(client.fetch_jwtsvid(request).await?.into_inner().svids.len())
}
