//! Administration: who may, then what; the work is done by the parts it concerns.
//!
//! A role is decided by the caller's credentials as the kernel has them at each call: root, the user the agent runs as,
//! and the groups of the `[admin]` section (see [`super::gate`]). Everything that changes something is audited with its
//! caller before it is done, and so is everyone who is refused.

mod approvals;
mod audit;
mod backup;
mod credentials;
mod entries;
mod policies;
mod roles;
mod sessions;

use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};

use super::gate::Administrator;
use super::status;
use crate::audit::Event;
use crate::authority::Authority;
use crate::authority::slot::{Kind, Slot, State};
use crate::base::text::{chain, is_hidden};
use crate::bundle::Bundle;
use crate::id::TrustDomain;
use crate::issue::{Issuer, caller};
use crate::peer::{InstanceError, Instances, PeerConn};
use crate::proto::admin as wire;
use crate::registry::{Registry, Rules, Verdict};
use crate::selector::Selector;
use crate::session::Sessions;
use crate::store::Store;
use crate::telemetry::LogLevel;
use crate::trust::{CrlSet, Snapshot, Trust};

pub use self::backup::{About, piece};
pub(crate) use self::credentials::meaning as binding_meaning;
pub use self::entries::stored_entries;
pub use self::roles::{Role, RoleSet, Roles};

/// The longest text that says why.
const MAX_TEXT_BYTES: usize = 256;
/// Explaining shows at most this many entries that do not match; those that do are always shown.
const MAX_EXPLAINED: usize = 1000;

/// Tells how the agent is.
pub trait StatusSource: Send + Sync {
    /// The document that `tether status --output json` prints.
    fn status(&self) -> Value;

    /// Takes note of entries in the store that are not readable, each named with its mistakes; none when all are.
    fn stored_entries(&self, unusable: &[String]);
}

/// What became of one source when it was read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadSource {
    /// `configuration`, `authority files`, `entries` or `policies`.
    pub source: String,
    /// Whether it is in force.
    pub ok: bool,
    /// What was loaded, or every mistake with its place.
    pub messages: Vec<String>,
}

/// Reads configuration and entries again.
#[tonic::async_trait]
pub trait Reloadable: Send + Sync {
    /// Reads every source again; what is wrong changes nothing.
    async fn reload(&self) -> Vec<ReloadSource>;
}

/// What [`Admin`] is made of.
#[derive(Clone)]
pub struct Parts {
    /// What signs.
    pub authority: Arc<Authority>,
    /// Bundles and signers.
    pub trust: Arc<Trust>,
    /// The registration entries.
    pub registry: Registry,
    /// What entries must obey.
    pub rules: Rules,
    /// Where entries made here are kept.
    pub store: Store,
    /// Tasks, and what of them waits for a person's word.
    pub sessions: Sessions,
    /// Who attests, for explaining.
    pub issuer: Arc<Issuer>,
    /// Processes by number, for explaining.
    pub instances: Instances,
    /// The running log.
    pub log: LogLevel,
    /// How the agent is.
    pub status: Arc<dyn StatusSource>,
    /// Reading again.
    pub reload: Arc<dyn Reloadable>,
}

/// The services of `tether.admin.v1`.
#[derive(Clone)]
pub struct Admin {
    parts: Arc<Parts>,
    /// Held while entries are judged and stored, so that two changes cannot pass each other.
    entries: Arc<tokio::sync::Mutex<()>>,
}

impl Admin {
    /// The services over these parts.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), entries: Arc::default() }
    }

    /// The caller, when it has the role.
    fn require<T>(&self, request: &Request<T>, role: Role) -> Result<PeerConn, Status> {
        let caller = administrator(request)?;
        if !caller.roles.has(role) {
            return Err(Status::permission_denied(format!(
                "this needs the {role} role: join one of the groups that [admin] names, or ask as root"
            )));
        }
        Ok(caller.peer.clone())
    }

    /// Records what only takes away: it is done also when that cannot be written.
    fn audit(&self, peer: &PeerConn, action: &'static str, subject: impl Into<String>) {
        self.parts.issuer.audit.record(Event::Admin { caller: caller(peer), action, subject: subject.into() });
    }

    /// Records what gives somebody something: it is not done when that cannot be written.
    fn audit_gift(&self, peer: &PeerConn, action: &'static str, subject: impl Into<String>) -> Result<(), Status> {
        let event = Event::Admin { caller: caller(peer), action, subject: subject.into() };
        self.parts.issuer.audit.before(event).map_err(|error| {
            Status::unavailable(format!("the audit log cannot be written, so nothing was changed: {}", chain(&error)))
        })
    }

    async fn publish(&self, signers: Arc<crate::authority::Signers>) -> Result<(), Status> {
        self.parts.trust.authority_changed(signers).await.map_err(|error| status::trust(&error))
    }

    fn authorities(&self) -> wire::ShowAuthoritiesResponse {
        let trust = self.parts.trust.current();
        let disk = trust.signers().disk().map(|disk| wire::AuthorityView {
            id: disk.id.clone(),
            kind: "x509-disk".to_owned(),
            state: "active".to_owned(),
            not_before: rfc3339(disk.not_before),
            not_after: rfc3339(disk.not_after),
            activates_at: String::new(),
        });
        let authorities = disk.into_iter().chain(trust.signers().slots().iter().map(authority_view)).collect();
        wire::ShowAuthoritiesResponse { authorities, sequence: trust.own().sequence().unwrap_or_default() }
    }
}

#[tonic::async_trait]
impl wire::authorities_server::Authorities for Admin {
    async fn show(
        &self,
        request: Request<wire::ShowAuthoritiesRequest>,
    ) -> Result<Response<wire::ShowAuthoritiesResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        Ok(Response::new(self.authorities()))
    }

    async fn rotate(
        &self,
        request: Request<wire::RotateAuthorityRequest>,
    ) -> Result<Response<wire::ShowAuthoritiesResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let request = request.into_inner();
        let kind = match request.kind.as_str() {
            "" => Kind::X509Signing,
            name => Kind::parse(name)
                .ok_or_else(|| status::bad_field("kind", format!("is `{name}`: use x509-signing, x509-root or jwt")))?,
        };
        self.audit_gift(&peer, "authority.rotate", kind.as_str())?;
        let signers = self.parts.authority.rotate(kind, request.now).await;
        self.publish(signers.map_err(|error| status::authority(&error))?).await?;
        Ok(Response::new(self.authorities()))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeAuthorityRequest>,
    ) -> Result<Response<wire::ShowAuthoritiesResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let id = request.into_inner().id;
        self.audit(&peer, "authority.revoke", id.as_str());
        let signers = self.parts.authority.revoke(&id).await;
        self.publish(signers.map_err(|error| status::authority(&error))?).await?;
        Ok(Response::new(self.authorities()))
    }
}

#[tonic::async_trait]
impl wire::bundles_server::Bundles for Admin {
    async fn show(
        &self,
        request: Request<wire::ShowBundlesRequest>,
    ) -> Result<Response<wire::ShowBundlesResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let wanted = request.into_inner().trust_domain;
        let crls = self.parts.issuer.crls.current().await;
        let trust = self.parts.trust.current();
        let all = std::iter::once(trust.own()).chain(trust.foreign().map(|(_, bundle)| bundle));
        if wanted.is_empty() {
            let bundles = all.map(|bundle| bundle_view(bundle, &trust, &crls)).collect::<Result<_, _>>()?;
            return Ok(Response::new(wire::ShowBundlesResponse { bundles }));
        }
        let domain = domain(&wanted)?;
        let bundle =
            trust.bundle(&domain).ok_or_else(|| Status::not_found(format!("there is no bundle of `{domain}`")))?;
        Ok(Response::new(wire::ShowBundlesResponse { bundles: vec![bundle_view(bundle, &trust, &crls)?] }))
    }

    async fn set(&self, request: Request<wire::SetBundleRequest>) -> Result<Response<wire::BundleView>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let request = request.into_inner();
        let domain = domain(&request.trust_domain)?;
        self.audit_gift(&peer, "bundle.set", domain.as_str())?;
        let set = self.parts.trust.set(domain, request.content.as_bytes()).await;
        let set = set.map_err(|error| status::trust(&error))?;
        let crls = self.parts.issuer.crls.current().await;
        Ok(Response::new(bundle_view(&set, &self.parts.trust.current(), &crls)?))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteBundleRequest>,
    ) -> Result<Response<wire::DeleteBundleResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let domain = domain(&request.into_inner().trust_domain)?;
        self.audit(&peer, "bundle.delete", domain.as_str());
        self.parts.trust.delete(&domain).await.map_err(|error| status::trust(&error))?;
        Ok(Response::new(wire::DeleteBundleResponse {}))
    }
}

#[tonic::async_trait]
impl wire::agent_server::Agent for Admin {
    type BackupStream = backup::Chunks;

    async fn backup(&self, request: Request<wire::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        self.make_backup(request).await
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        Ok(Response::new(wire::StatusResponse { json: self.parts.status.status().to_string() }))
    }

    async fn reload(&self, request: Request<wire::ReloadRequest>) -> Result<Response<wire::ReloadResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        self.audit(&peer, "agent.reload", "");
        let sources = self.parts.reload.reload().await.into_iter().map(|source| wire::ReloadedSource {
            source: source.source,
            ok: source.ok,
            messages: source.messages,
        });
        Ok(Response::new(wire::ReloadResponse { sources: sources.collect() }))
    }

    async fn log_level(
        &self,
        request: Request<wire::LogLevelRequest>,
    ) -> Result<Response<wire::LogLevelResponse>, Status> {
        let role = if request.get_ref().level.is_empty() { Role::Viewer } else { Role::Operator };
        let peer = self.require(&request, role)?;
        let level = request.into_inner().level;
        let level = if level.is_empty() {
            self.parts.log.current()
        } else {
            self.audit(&peer, "log.level", level.as_str());
            self.parts.log.set(&level)
        };
        let level = level.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(wire::LogLevelResponse { level }))
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Result<Response<wire::ExplainResponse>, Status> {
        let asker = administrator(&request)?;
        let pid = request.get_ref().pid;
        let instance = match pid {
            0 => asker.peer.instance().clone(),
            pid => self.parts.instances.of_pid(pid, None).map_err(|error| no_process(pid, &error))?,
        };
        // Everyone may ask about processes of its own user; about others only who may look at everything.
        let facts = instance.look().map_err(|error| Status::not_found(error.to_string()))?;
        if facts.uid != asker.uid {
            self.require(&request, Role::Viewer)?;
        }
        let everything = !asker.roles.is_empty();
        let explained = self.parts.issuer.attestation.explain(&instance, asker.uid).await;
        let explained = explained.map_err(|error| Status::unavailable(chain(&error)))?;
        if explained.uid() != facts.uid {
            return Err(Status::unavailable("the process changed its user: try again"));
        }
        Ok(Response::new(self.explanation(&instance, &explained, everything)))
    }
}

impl Admin {
    fn explanation(
        &self,
        instance: &crate::peer::Instance,
        attested: &crate::attest::Attested,
        everything: bool,
    ) -> wire::ExplainResponse {
        let evidence = attested.evidence();
        let now = self.parts.issuer.clock.now();
        let index = self.parts.registry.index();
        let mut entries = Vec::new();
        let mut left_out = 0;
        for explained in index.explain(evidence, now) {
            let (verdict, spiffe_id, reasons) = match explained.verdict {
                Verdict::Match { spiffe_id, notes } => ("match", spiffe_id.to_string(), notes),
                // What others are registered for is only for those who may look at everything.
                Verdict::NoMatch { .. } | Verdict::Unavailable { .. } if !everything => {
                    left_out += 1;
                    continue;
                }
                Verdict::NoMatch { .. } if entries.len() >= MAX_EXPLAINED => {
                    left_out += 1;
                    continue;
                }
                Verdict::NoMatch { reasons } => ("no match", explained.entry.spiffe_id().to_string(), reasons),
                Verdict::Unavailable { reasons } => ("unavailable", explained.entry.spiffe_id().to_string(), reasons),
            };
            entries.push(wire::EntryVerdict {
                entry_id: explained.entry.id().to_string(),
                spiffe_id,
                verdict: verdict.to_owned(),
                reasons,
                origin: explained.entry.origin().to_string(),
            });
        }
        let mut notes: Vec<String> =
            evidence.notes.iter().map(|note| format!("{}: {}", note.kind, note.text)).collect();
        if left_out > 0 && everything {
            notes.push(format!("{left_out} more entries do not match"));
        } else if left_out > 0 {
            notes.push(format!("{left_out} more entries do not match; the viewer role is shown which and why"));
        }
        let gaps = evidence.gaps.iter().map(|gap| match gap.keys {
            [] => format!("{}: {}", gap.kind, gap.why),
            keys => format!("{}:{}: {}", gap.kind, keys.join(","), gap.why),
        });
        wire::ExplainResponse {
            pid: instance.pid(),
            instance: instance.id().to_string(),
            weak: instance.weak().map(|weak| weak.to_string()).unwrap_or_default(),
            selectors: evidence.selectors.iter().map(Selector::shown).collect(),
            gaps: gaps.collect(),
            entries,
            notes,
        }
    }
}

/// Who calls, as the gate found out.
fn administrator<T>(request: &Request<T>) -> Result<&Administrator, Status> {
    request.extensions().get::<Administrator>().ok_or_else(|| Status::internal("BUG: the caller's roles are unknown"))
}

/// Whether a text that is kept is one line, and not a long one.
fn one_line(field: &str, text: &str) -> Result<(), Status> {
    if text.len() > MAX_TEXT_BYTES || text.chars().any(is_hidden) {
        return Err(status::bad_field(field, format!("is one line of at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

fn no_process(pid: i32, error: &InstanceError) -> Status {
    match error {
        InstanceError::Gone => Status::not_found(format!("there is no process {pid}")),
        error => Status::unavailable(chain(error)),
    }
}

fn domain(text: &str) -> Result<TrustDomain, Status> {
    TrustDomain::parse_name_or_id(text)
        .map_err(|error| status::bad_field("trust_domain", format!("`{text}` is not a trust domain: {error}")))
}

fn authority_view(slot: &Slot) -> wire::AuthorityView {
    let activates_at = match slot.state {
        State::Prepared { activates_at } => rfc3339(activates_at),
        _ => String::new(),
    };
    wire::AuthorityView {
        id: slot.id.clone(),
        kind: slot.kind.as_str().to_owned(),
        state: slot.state.as_str().to_owned(),
        not_before: rfc3339(slot.not_before),
        not_after: rfc3339(slot.not_after),
        activates_at,
    }
}

fn bundle_view(bundle: &Bundle, snapshot: &Snapshot, crls: &CrlSet) -> Result<wire::BundleView, Status> {
    let own = bundle.trust_domain() == snapshot.domain();
    let jwt_issuer = snapshot.signers().jwt_issuer().filter(|_| own);
    Ok(wire::BundleView {
        trust_domain: bundle.trust_domain().to_string(),
        jwks: bundle.to_json().map_err(|error| Status::internal(chain(&error)))?,
        pem: bundle.x509().to_pem(),
        own,
        crl_pem: if own { crls.to_pem() } else { Vec::new() },
        jwt_issuer: jwt_issuer.unwrap_or_default().to_owned(),
    })
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}
