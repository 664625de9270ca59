//! What may be written to files, as the agent hands it out (`tether.export.v1`).

use std::collections::BTreeMap;

use time::OffsetDateTime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::workload::{
    MAX_ANSWER_BYTES, malformed, no_bundle, read_crls, read_id, read_jwt_bundles, read_x509_bundles,
};
use super::workload::{SecurityHeader, read_x509_svid};
use super::{ClientError, Endpoint, JwtSvid, Watch, X509Svid, channel, with_header};
use crate::base::secret::Secret;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::JwtAuthorities;
use crate::proto::export as wire;
use crate::proto::export::exports_client::ExportsClient;
use crate::proto::workload::X509svid;
use crate::x509::{Crl, X509Authorities};

type Client = ExportsClient<InterceptedService<Channel, SecurityHeader>>;

/// Which of the caller's identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first one whose entry is exportable.
    #[default]
    Default,
    /// This one.
    Id(SpiffeId),
    /// The one with this hint.
    Hint(String),
}

/// An X509-SVID with its key, and all that peers are judged by.
#[derive(Debug)]
pub struct X509Export {
    /// The SVID.
    pub svid: X509Svid,
    /// The authorities of each trust domain that may be believed, that of the SVID among them.
    pub authorities: BTreeMap<TrustDomain, X509Authorities>,
    /// The keys of JWT-SVIDs, likewise.
    pub jwt: BTreeMap<TrustDomain, JwtAuthorities>,
    /// All revocation lists of the agent.
    pub crls: Vec<Crl>,
}

/// A stream of them.
pub type ExportWatch = Watch<wire::X509State, X509Export>;

/// A client of the service. Cheap to clone; all clones share a connection.
#[derive(Clone, Debug)]
pub struct Exports {
    client: Client,
    endpoint: Endpoint,
}

impl Exports {
    /// The service at `endpoint`. Connects at the first call.
    pub fn new(endpoint: Endpoint) -> Self {
        let client = ExportsClient::new(with_header(channel(&endpoint))).max_decoding_message_size(MAX_ANSWER_BYTES);
        Self { client, endpoint }
    }

    /// Where the agent is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What may be written, as it changes.
    pub fn watch_x509(&self, choice: &Choice) -> ExportWatch {
        let (client, choice) = (self.client.clone(), to_wire(choice));
        let open = move || {
            let mut client = client.clone();
            let request = wire::WatchX509Request { choice: Some(choice.clone()) };
            Box::pin(async move { client.watch_x509(request).await }) as _
        };
        Watch::of(&self.endpoint, open, read)
    }

    /// A JWT-SVID for exactly these audiences.
    pub async fn fetch_jwt(&self, audience: &[String], choice: &Choice) -> Result<JwtSvid, ClientError> {
        let request = wire::FetchJwtRequest { choice: Some(to_wire(choice)), audience: audience.to_vec() };
        let answer = self.client.clone().fetch_jwt(request).await;
        let answer = answer.map_err(|status| ClientError::from_status(&self.endpoint, &status))?.into_inner();
        let expires_at = OffsetDateTime::from_unix_timestamp(answer.expires_at)
            .map_err(|error| malformed("the end of a JWT-SVID", error))?;
        Ok(JwtSvid { id: read_id(&answer.spiffe_id)?, hint: None, token: Secret::new(answer.token), expires_at })
    }
}

fn to_wire(choice: &Choice) -> wire::Choice {
    match choice {
        Choice::Default => wire::Choice::default(),
        Choice::Id(id) => wire::Choice { spiffe_id: id.to_string(), ..wire::Choice::default() },
        Choice::Hint(hint) => wire::Choice { hint: hint.clone(), ..wire::Choice::default() },
    }
}

fn read(state: wire::X509State) -> Result<X509Export, ClientError> {
    let wire::X509State { spiffe_id, hint, x509_svid, x509_svid_key, x509_bundles, jwt_bundles, crl } = state;
    let domain = read_id(&spiffe_id)?.trust_domain();
    let bundle = x509_bundles.get(&domain.id().to_string()).cloned().ok_or_else(no_bundle)?;
    Ok(X509Export {
        svid: read_x509_svid(X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, hint })?,
        authorities: read_x509_bundles(x509_bundles)?,
        jwt: read_jwt_bundles(jwt_bundles)?,
        crls: read_crls(&crl)?,
    })
}
