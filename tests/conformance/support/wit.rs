//! The WIT profile, which an agent offers when it is told to.

use tether::proto::workload::{WitBundlesRequest, WitBundlesResponse, Witsvid, WitsvidRequest, WitsvidResponse};
use tonic::{Status, Streaming};

use crate::harness::{TestAgent, Workload, next, within};

/// A `--dev` agent that offers the WIT profile.
pub async fn agent() -> TestAgent {
    TestAgent::configured(|config| config.wit.enabled = true).await
}

/// An agent that offers it, without the built-in entry.
pub async fn agent_without_entries() -> TestAgent {
    TestAgent::without_entries_and(|config| config.wit.enabled = true).await
}

/// An open stream of WIT-SVIDs; of all identities when `spiffe_id` is empty.
pub async fn wit_stream(client: &mut Workload, spiffe_id: &str) -> Result<Streaming<WitsvidResponse>, Status> {
    let request = WitsvidRequest { spiffe_id: spiffe_id.to_owned() };
    within(client.fetch_witsvid(request)).await.map(tonic::Response::into_inner)
}

/// The WIT-SVIDs of now.
pub async fn wit(agent: &TestAgent, spiffe_id: &str) -> Result<Vec<Witsvid>, Status> {
    let mut client = agent.workload().await;
    Ok(next(&mut wit_stream(&mut client, spiffe_id).await?).await?.svids)
}

/// An open stream of WIT bundles.
pub async fn wit_bundle_stream(client: &mut Workload) -> Result<Streaming<WitBundlesResponse>, Status> {
    within(client.fetch_wit_bundles(WitBundlesRequest {})).await.map(tonic::Response::into_inner)
}

/// The WIT bundles of now.
pub async fn wit_bundles(agent: &TestAgent) -> Result<WitBundlesResponse, Status> {
    let mut client = agent.workload().await;
    next(&mut wit_bundle_stream(&mut client).await?).await
}
