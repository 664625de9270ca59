//! What the rules' tests have in common.

pub mod foreign;
pub mod forge;
pub mod mock;
pub mod other_user;
pub mod raw;
pub mod wit;

use tether::proto::admin::{CreateEntryRequest, SetBundleRequest, ShowBundlesRequest};
use tether::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tonic::{Code, Status, Streaming};

use crate::harness::{TestAgent, Workload, next, uid, within};

/// The trust domain of a test agent.
pub const DOMAIN: &str = "dev.tether.internal";
/// Its SPIFFE ID, the key of its bundle.
pub const DOMAIN_ID: &str = "spiffe://dev.tether.internal";
/// What tokens are for.
pub const AUDIENCE: &str = "https://api.example.com";

/// Runs one test in a runtime of its own.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(test);
}

/// An entry that every process of this user matches.
pub fn entry(id: &str, path: &str, more: &str) -> String {
    entry_with_id(id, &format!("{DOMAIN_ID}/{path}"), more)
}

/// The same with a whole SPIFFE ID.
pub fn entry_with_id(id: &str, spiffe_id: &str, more: &str) -> String {
    format!(
        "[[entry]]\nid = \"{id}\"\nspiffe_id = \"{spiffe_id}\"\nmatch = [\"unix:uid:{}\"]\nowner = \"tests\"\n{more}\n",
        uid()
    )
}

/// Makes an entry through the admin API.
pub async fn create(agent: &TestAgent, toml: String) -> Result<(), Status> {
    within(async { agent.entries().await.create(CreateEntryRequest { toml }).await }).await.map(drop)
}

/// Sets a bundle through the admin API.
pub async fn set_bundle(agent: &TestAgent, trust_domain: &str, content: &str) -> Result<(), Status> {
    let request = SetBundleRequest { trust_domain: trust_domain.to_owned(), content: content.to_owned() };
    within(async { agent.bundles().await.set(request).await }).await.map(drop)
}

/// The published bundle of the agent's own trust domain.
pub async fn published(agent: &TestAgent) -> serde_json::Value {
    let request = ShowBundlesRequest { trust_domain: DOMAIN.to_owned() };
    let shown = within(async { agent.bundles().await.show(request).await }).await.unwrap().into_inner();
    serde_json::from_str(&shown.bundles[0].jwks).unwrap()
}

/// An open stream of X509-SVIDs.
pub async fn x509_stream(client: &mut Workload) -> Streaming<X509svidResponse> {
    within(client.fetch_x509svid(X509svidRequest {})).await.unwrap().into_inner()
}

/// The X509-SVIDs of now.
pub async fn x509(agent: &TestAgent) -> X509svidResponse {
    next(&mut x509_stream(&mut agent.workload().await).await).await.unwrap()
}

/// The X.509 bundles of now.
pub async fn x509_bundles(agent: &TestAgent) -> X509BundlesResponse {
    let mut client = agent.workload().await;
    next(&mut within(client.fetch_x509_bundles(X509BundlesRequest {})).await.unwrap().into_inner()).await.unwrap()
}

/// The JWT bundles of now.
pub async fn jwt_bundles(agent: &TestAgent) -> JwtBundlesResponse {
    let mut client = agent.workload().await;
    next(&mut within(client.fetch_jwt_bundles(JwtBundlesRequest {})).await.unwrap().into_inner()).await.unwrap()
}

/// JWT-SVIDs for these audiences; of all identities when `spiffe_id` is empty.
pub async fn jwt(agent: &TestAgent, audience: &[&str], spiffe_id: &str) -> Result<Vec<Jwtsvid>, Status> {
    let audience = audience.iter().map(|&audience| audience.to_owned()).collect();
    let request = JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() };
    let mut client = agent.workload().await;
    within(client.fetch_jwtsvid(request)).await.map(|answer| answer.into_inner().svids)
}

/// Asks the agent about a token for [`AUDIENCE`].
pub async fn validate(agent: &TestAgent, token: &str) -> Result<ValidateJwtsvidResponse, Status> {
    validate_for(agent, token, AUDIENCE).await
}

/// Asks the agent about a token for any audience.
pub async fn validate_for(agent: &TestAgent, token: &str, audience: &str) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
    let mut client = agent.workload().await;
    within(client.validate_jwtsvid(request)).await.map(tonic::Response::into_inner)
}

/// A call was refused with this code and words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.expect_err(words);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "`{words}` is not in: {}", status.message());
}

/// The first path segments of SPIFFE IDs, in order.
pub fn names<'a>(ids: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    ids.into_iter().map(|id| id.strip_prefix("spiffe://dev.tether.internal/").unwrap_or(id)).collect()
}

/// Whether OpenSSL's command is there.
pub fn has_openssl() -> bool {
    std::process::Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success())
}

/// Whether this process may become another user.
pub fn is_root() -> bool {
    uid() == 0
}
