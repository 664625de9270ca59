//! `tether.export.v1` over the real caller: translates, decides nothing.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::status;
use super::workload::{Open, Updates, audiences, caller, respond, wanted, x509_bundle, x509_map};
use crate::base::drain;
use crate::issue::{Choice, ExportState, Issuer};
use crate::proto::export as wire;
use crate::proto::export::exports_server::Exports;
use crate::stream::{Update, updates_and_crls};
use crate::trust::CrlSet;

/// The longest hint that is looked for (SPIFFE Workload API, section 8).
const MAX_HINT_BYTES: usize = 1024;

/// The service.
#[derive(Clone, Debug)]
pub struct ExportApi {
    issuer: Arc<Issuer>,
    drain: drain::Watcher,
}

impl ExportApi {
    /// Hands out what `issuer` issues for files, until `drain` begins.
    pub fn new(issuer: Arc<Issuer>, drain: drain::Watcher) -> Self {
        Self { issuer, drain }
    }
}

/// All that is sent, compared as a client would.
#[derive(Clone)]
struct State {
    export: ExportState,
    crls: Arc<CrlSet>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let same_crls = Arc::ptr_eq(&self.crls, &other.crls) || self.crls.der() == other.crls.der();
        same_crls && self.export == other.export
    }
}

#[tonic::async_trait]
impl Exports for ExportApi {
    type WatchX509Stream = Updates<wire::X509State>;

    async fn watch_x509(
        &self,
        request: Request<wire::WatchX509Request>,
    ) -> Result<Response<Self::WatchX509Stream>, Status> {
        let (peer, place) = caller(&request)?;
        let choice = choice(request.into_inner().choice)?;
        let open = Open::new(&self.issuer, place, "WatchX509");
        let feed = Arc::new(self.issuer.crls.feed());
        let states = updates_and_crls(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| {
            let (choice, feed) = (choice.clone(), feed.clone());
            async move {
                let export = issuer.export_x509(&peer, &choice).await?;
                let crls = feed.lists().await;
                let (credentials, renew_at) = (vec![export.svid.0.svid.0.signed.serial.clone()], export.renew_at);
                Ok(Update { state: State { export, crls }, credentials, target: None, renew_at: Some(renew_at) })
            }
        });
        Ok(respond(states, open, x509_state))
    }

    async fn fetch_jwt(
        &self,
        request: Request<wire::FetchJwtRequest>,
    ) -> Result<Response<wire::FetchJwtResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let (audience, choice) = (audiences(request.audience)?, choice(request.choice)?);
        let made = self.issuer.export_jwt(&peer, &audience, &choice).await;
        let (spiffe_id, signed) = made.map_err(|refusal| status::refused(&refusal))?;
        let expires_at = signed.expires_at.unix_timestamp();
        Ok(Response::new(wire::FetchJwtResponse { spiffe_id: spiffe_id.to_string(), token: signed.token, expires_at }))
    }
}

fn choice(choice: Option<wire::Choice>) -> Result<Choice, Status> {
    let wire::Choice { spiffe_id, hint } = choice.unwrap_or_default();
    match (wanted(&spiffe_id)?, hint.len()) {
        (Some(_), 1..) => Err(status::bad_field("hint", "is there beside `spiffe_id`: choose by one of them")),
        (Some(id), 0) => Ok(Choice::Id(id)),
        (None, 0) => Ok(Choice::Default),
        (None, 1..=MAX_HINT_BYTES) => Ok(Choice::Hint(hint)),
        (None, _) => Err(status::bad_field("hint", format!("has more than {MAX_HINT_BYTES} bytes"))),
    }
}

fn x509_state(State { export, crls }: State) -> Result<wire::X509State, Status> {
    // A bundle without its own authorities would be no bundle.
    x509_bundle(&export.bundles)?;
    let (kept, hint) = &export.svid;
    let svid = &kept.svid.0;
    let jwt = export.bundles.all().map(|bundle| (bundle.trust_domain().id().to_string(), bundle.jwt_jwks().into()));
    Ok(wire::X509State {
        spiffe_id: kept.spiffe_id.to_string(),
        hint: hint.as_deref().unwrap_or_default().to_owned(),
        x509_svid: Bytes::copy_from_slice(&svid.signed.chain),
        x509_svid_key: Bytes::copy_from_slice(svid.key.expose()),
        x509_bundles: x509_map(&export.bundles).collect(),
        jwt_bundles: jwt.collect(),
        crl: crls.der().to_vec(),
    })
}
