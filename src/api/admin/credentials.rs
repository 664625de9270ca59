//! The ledger for people: what was issued to whom, what it is worth to a thief, and ending it on an operator's word.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{Admin, Role, one_line, rfc3339};
use crate::api::status;
use crate::audit::Event;
use crate::base::text::chain;
use crate::id::SpiffeId;
use crate::ledger::{Credential, Kind, Reason, Standing};
use crate::proto::admin as wire;

/// So many are listed when the request does not say.
const DEFAULT_LIMIT: usize = 1000;
/// So many are listed at most.
const MAX_LIMIT: usize = 100_000;
/// So many are named in the answer to a revocation.
const MAX_NAMED: usize = 1000;
/// Whoever names a credential by the beginning of its id gives at least so many digits of it.
const MIN_DIGITS: usize = 6;
/// The digits of a whole serial number, and of the random part of a jti.
const ALL_DIGITS: usize = 32;

/// The beginning of a serial number or jti, perhaps all of it.
#[derive(Clone, Debug)]
struct IdPattern {
    text: String,
    of: Of,
}

/// What an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Anything,
    Certificates,
    Tokens,
}

impl IdPattern {
    /// Tools print serial numbers in upper case and with colons.
    fn parse(field: &str, text: &str, of: Of) -> Result<Self, Status> {
        let plain: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let digits = random_part(&plain);
        let legal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !legal || !(MIN_DIGITS..=ALL_DIGITS).contains(&digits.len()) {
            let what = "is not a serial number or jti of ours, nor how one begins";
            let why = format!("{what}: `{text}` must have {MIN_DIGITS} to {ALL_DIGITS} hex digits");
            return Err(status::bad_field(field, why));
        }
        Ok(Self { text: plain, of })
    }

    fn picks(&self, credential: &Credential) -> bool {
        let kind = match self.of {
            Of::Anything => true,
            Of::Certificates => credential.kind == Kind::X509,
            Of::Tokens => credential.kind != Kind::X509,
        };
        let with_node = self.text.contains('.');
        let id = if with_node { credential.id.as_str() } else { random_part(&credential.id) };
        kind && id.starts_with(&self.text)
    }
}

/// An id without the node in front of it.
fn random_part(id: &str) -> &str {
    id.rsplit_once('.').map_or(id, |(_, random)| random)
}

/// One identity, or all below a path.
#[derive(Clone, Debug)]
enum Identities {
    One(String),
    Below(String),
}

impl Identities {
    fn parse(text: &str) -> Result<Self, Status> {
        let fixed = text.strip_suffix("/*");
        let id = SpiffeId::parse(fixed.unwrap_or(text)).map_err(|error| {
            let what = "is not a SPIFFE ID, nor one with `/*` at its end for all below";
            status::bad_field("spiffe_id", format!("{what}: {error}"))
        })?;
        Ok(if fixed.is_some() { Self::Below(format!("{id}/")) } else { Self::One(id.to_string()) })
    }

    fn pick(&self, spiffe_id: &str) -> bool {
        match self {
            Self::One(id) => spiffe_id == id,
            Self::Below(prefix) => spiffe_id.starts_with(prefix),
        }
    }
}

/// A filter that was understood.
#[derive(Clone, Debug, Default)]
struct Wanted {
    ids: Vec<IdPattern>,
    identities: Option<Identities>,
    pid: Option<i32>,
    entry: Option<String>,
    owner: Option<String>,
    kind: Option<Kind>,
    /// The same as the caller wrote it, for the audit log.
    written: String,
}

impl Wanted {
    fn parse(filter: Option<wire::CredentialFilter>) -> Result<Self, Status> {
        let filter = filter.unwrap_or_default();
        let fields = [
            ("id", &filter.id),
            ("serial", &filter.serial),
            ("jti", &filter.jti),
            ("spiffe_id", &filter.spiffe_id),
            ("entry", &filter.entry),
            ("owner", &filter.owner),
            ("kind", &filter.kind),
        ];
        let mut written: Vec<String> =
            fields.iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| format!("{name}={text:?}")).collect();
        let mut wanted = Self::default();
        for ((field, text), of) in fields.iter().zip([Of::Anything, Of::Certificates, Of::Tokens]) {
            if !text.is_empty() {
                wanted.ids.push(IdPattern::parse(field, text, of)?);
            }
        }
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        wanted.identities = text(filter.spiffe_id).map(|id| Identities::parse(&id)).transpose()?;
        wanted.entry = text(filter.entry);
        wanted.owner = text(filter.owner);
        wanted.kind = match filter.kind.as_str() {
            "" => None,
            name => Some(Kind::parse(name).ok_or_else(|| {
                status::bad_field("kind", format!("is `{name}`: use x509, jwt or wit, or leave it out"))
            })?),
        };
        wanted.pid = match filter.pid {
            0 => None,
            1.. => Some(filter.pid),
            _ => return Err(status::bad_field("pid", format!("is {}: a process id is a positive number", filter.pid))),
        };
        written.extend(wanted.pid.map(|pid| format!("pid={pid}")));
        wanted.written = written.join(" ");
        Ok(wanted)
    }

    fn by_id(id: &str) -> Result<Self, Status> {
        Ok(Self { ids: vec![IdPattern::parse("id", id, Of::Anything)?], written: id.to_owned(), ..Self::default() })
    }

    /// Whether it leaves nothing out.
    fn is_everything(&self) -> bool {
        self.written.is_empty()
    }

    fn picks(&self, credential: &Credential) -> bool {
        self.ids.iter().all(|id| id.picks(credential))
            && self.identities.as_ref().is_none_or(|identities| identities.pick(&credential.spiffe_id))
            && self.pid.is_none_or(|pid| pid == credential.pid)
            && self.entry.as_ref().is_none_or(|entry| *entry == credential.entry)
            && self.owner.as_ref().is_none_or(|owner| *owner == credential.owner)
            && self.kind.is_none_or(|kind| kind == credential.kind)
    }

    /// Whoever names one credential must not get another one that begins with the same digits.
    fn names_one(&self, found: u64) -> Result<(), Status> {
        match (self.ids.is_empty(), found) {
            (true, _) | (_, 1) => Ok(()),
            (_, 0) => Err(Status::not_found(format!(
                "no credential {} is in the ledger of this node; what has expired is not kept",
                self.written
            ))),
            (_, several) => Err(Status::failed_precondition(format!(
                "{several} credentials are like {}: give more digits, or what else tells them apart",
                self.written
            ))),
        }
    }
}

/// The newest of many, counted, without holding all of them.
#[derive(Debug)]
struct Newest {
    limit: usize,
    kept: BTreeMap<Reverse<(OffsetDateTime, String)>, Credential>,
    total: u64,
}

impl Newest {
    fn new(limit: usize) -> Self {
        Self { limit, kept: BTreeMap::new(), total: 0 }
    }

    fn add(&mut self, credential: Credential) {
        self.total += 1;
        self.kept.insert(Reverse((credential.issued_at, credential.id.clone())), credential);
        if self.kept.len() > self.limit {
            self.kept.pop_last();
        }
    }
}

/// Which credentials are looked through.
#[derive(Clone, Copy, Debug)]
enum Among {
    /// Those that have not expired.
    Valid,
    /// And those that have not if the clock is ahead: what is to be revoked must not be missed for that.
    InDoubtToo,
}

impl Admin {
    /// The newest that `picks` picks. A large ledger takes a while, so not on the threads that answer workloads.
    async fn newest(
        &self,
        among: Among,
        limit: usize,
        picks: impl Fn(&Credential) -> bool + Send + 'static,
    ) -> Result<Newest, Status> {
        let ledger = self.parts.issuer.ledger.clone();
        let search = tokio::task::spawn_blocking(move || {
            let mut newest = Newest::new(limit);
            let add = |credential| {
                if picks(&credential) {
                    newest.add(credential);
                }
            };
            match among {
                Among::Valid => ledger.each(add),
                Among::InDoubtToo => ledger.each_in_doubt_too(add),
            }
            newest
        });
        search.await.map_err(|_| Status::unavailable("the agent is stopping"))
    }

    fn credential_views(&self, credentials: impl IntoIterator<Item = Credential>) -> Vec<wire::CredentialView> {
        let trust = self.parts.trust.current();
        let index = self.parts.registry.index();
        let view = |credential: Credential| {
            let entry = index.entry(&credential.entry);
            // WIT-SVIDs of a node that does not publish their keys are believed by whoever asks it, and by no bundle.
            let published = credential.kind != Kind::Wit || !trust.own().wit().is_empty();
            let vouches = published && trust.signers().stands(&credential.authority);
            let federates = entry.into_iter().flat_map(|entry| entry.federates_with());
            let blast_radius = wire::BlastRadius {
                audiences: credential.audience.clone(),
                trusted_by: vouches.then(|| trust.domain().to_string()).into_iter().collect(),
                may_be_trusted_by: federates.map(ToString::to_string).collect(),
            };
            let exportable = entry.is_some_and(|entry| entry.is_exportable());
            wire::CredentialView { exportable, blast_radius: Some(blast_radius), ..view(credential) }
        };
        credentials.into_iter().map(view).collect()
    }
}

#[tonic::async_trait]
impl wire::credentials_server::Credentials for Admin {
    async fn list(
        &self,
        request: Request<wire::ListCredentialsRequest>,
    ) -> Result<Response<wire::ListCredentialsResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let wire::ListCredentialsRequest { filter, all, limit } = request.into_inner();
        let wanted = Wanted::parse(filter)?;
        let limit = match usize::try_from(limit).unwrap_or(usize::MAX) {
            0 => DEFAULT_LIMIT,
            limit => limit.min(MAX_LIMIT),
        };
        let picks =
            move |credential: &Credential| (all || credential.standing == Standing::Stands) && wanted.picks(credential);
        let newest = self.newest(Among::Valid, limit, picks).await?;
        let credentials = self.credential_views(newest.kept.into_values());
        Ok(Response::new(wire::ListCredentialsResponse { credentials, total: newest.total }))
    }

    async fn show(
        &self,
        request: Request<wire::ShowCredentialRequest>,
    ) -> Result<Response<wire::CredentialView>, Status> {
        self.require(&request, Role::Viewer)?;
        let wanted = Wanted::by_id(&request.into_inner().id)?;
        let picks = wanted.clone();
        let newest = self.newest(Among::Valid, 1, move |credential| picks.picks(credential)).await?;
        wanted.names_one(newest.total)?;
        let view = self.credential_views(newest.kept.into_values()).pop();
        view.map(Response::new).ok_or_else(|| Status::not_found("the credential has just expired"))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeCredentialsRequest>,
    ) -> Result<Response<wire::RevokeCredentialsResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let wire::RevokeCredentialsRequest { filter, reason, dry_run } = request.into_inner();
        let wanted = Wanted::parse(filter)?;
        if wanted.is_everything() {
            return Err(status::bad_field("filter", "picks everything: name at least one field"));
        }
        one_line("reason", &reason)?;
        let picks = wanted.clone();
        let there = self.newest(Among::InDoubtToo, 0, move |credential| picks.picks(credential)).await?.total;
        wanted.names_one(there)?;
        let picks = wanted.clone();
        let stands = move |credential: &Credential| credential.standing == Standing::Stands && picks.picks(credential);
        if dry_run {
            let newest = self.newest(Among::InDoubtToo, MAX_NAMED, stands).await?;
            let (total, revoked) = (newest.total, self.credential_views(newest.kept.into_values()));
            let already_ended = there.saturating_sub(total);
            return Ok(Response::new(wire::RevokeCredentialsResponse { revoked, total, already_ended }));
        }
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        self.audit(&peer, "credential.revoke", format!("{}{why}", wanted.written));
        let ended = self.parts.issuer.ledger.revoke(stands, Reason::Operator).await;
        let ended = ended.map_err(|error| Status::unavailable(chain(&error)))?;
        if !ended.is_empty() {
            self.parts.issuer.audit.record(Event::CredentialsEnded {
                what: wanted.written,
                reason: Reason::Operator.as_str(),
                count: ended.len(),
            });
        }
        let total = u64::try_from(ended.len()).unwrap_or(u64::MAX);
        // They are shown as they are now.
        let ledger = &self.parts.issuer.ledger;
        let revoked = ended.iter().take(MAX_NAMED).filter_map(|credential| ledger.credential(&credential.id));
        let revoked = self.credential_views(revoked);
        let already_ended = there.saturating_sub(total);
        Ok(Response::new(wire::RevokeCredentialsResponse { revoked, total, already_ended }))
    }
}

/// What the ledger says of a credential.
fn view(credential: Credential) -> wire::CredentialView {
    let (standing, reason, ended_at) = match credential.standing {
        Standing::Stands => ("stands", "", String::new()),
        Standing::Used => ("used", "", String::new()),
        Standing::Ended { reason, at } => ("ended", reason.as_str(), rfc3339(at)),
        Standing::Unknown => ("unknown", "", String::new()),
    };
    let custody = match (credential.kind, credential.held) {
        _ if credential.tie.is_exported() => "file",
        (Kind::Jwt, _) => "bearer",
        (_, true) => "tether",
        (_, false) => "workload",
    };
    let level = credential.binding;
    wire::CredentialView {
        id: credential.id,
        kind: credential.kind.as_str().to_owned(),
        spiffe_id: credential.spiffe_id,
        entry: credential.entry,
        owner: credential.owner,
        instance: credential.instance.to_string(),
        pid: credential.pid,
        uid: credential.uid,
        delegate: credential.delegate.unwrap_or_default(),
        bind: credential.bind.to_string(),
        tie: credential.tie.to_string(),
        binding: Some(wire::Binding { level: level.into(), meaning: meaning(level).to_owned() }),
        custody: custody.to_owned(),
        exportable: false,
        single_use: credential.single_use,
        authority: credential.authority,
        issued_at: rfc3339(credential.issued_at),
        not_after: rfc3339(credential.not_after),
        standing: standing.to_owned(),
        reason: reason.to_owned(),
        ended_at,
        last_asked: credential.last_asked.map(rfc3339).unwrap_or_default(),
        blast_radius: None,
    }
}

/// A binding level in a line: what a thief needs.
pub(crate) fn meaning(level: u8) -> &'static str {
    match level {
        0 => "bearer: whoever has it can use it, except at verifiers that ask tether",
        1 => "its key is in the workload: whoever copies the key can use it, except at verifiers that enforce our CRL",
        2 => "its key is held by tether: what is copied is of no use",
        3 => "its key is held by tether, which checks the process at every signature",
        4 => "as 3, in a process that tether launched in isolation",
        _ => "unknown to this version",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<IdPattern, Status> {
        IdPattern::parse("id", text, Of::Anything)
    }

    #[test]
    fn ids_are_taken_as_tools_print_them_and_by_their_beginning() {
        let serial = "4b0c5d3e8f1a2b3c4d5e6f708192a3b4";
        for good in ["4b0c5d", "4B:0C:5D:3E", serial, &serial.to_uppercase(), "aabb.4b0c5d"] {
            assert!(pattern(good).is_ok(), "{good}");
        }
        for bad in ["", "4b0c5", "4b0c5g", "4b 0c 5d", "serial", &format!("{serial}0"), "aabb.4b0c5", "4b0c5d."] {
            let error = pattern(bad).expect_err(bad);
            assert!(error.message().contains("6 to 32 hex digits"), "{error}");
        }
    }

    #[test]
    fn identities_are_one_or_all_below_a_path() {
        let pick = |text: &str, id: &str| Identities::parse(text).expect(text).pick(id);
        assert!(pick("spiffe://td/a", "spiffe://td/a"));
        assert!(!pick("spiffe://td/a", "spiffe://td/a/b"));
        assert!(pick("spiffe://td/a/*", "spiffe://td/a/b/c"));
        assert!(!pick("spiffe://td/a/*", "spiffe://td/a") && !pick("spiffe://td/a/*", "spiffe://td/ab"));
        assert!(pick("spiffe://td/*", "spiffe://td/a"));
        for bad in ["*", "td/a", "spiffe://td/a*", "spiffe://TD/a"] {
            assert!(Identities::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_filter_with_an_unknown_word_is_refused_and_an_empty_one_is_recognised() {
        let parse = |filter| Wanted::parse(Some(filter));
        let none = wire::CredentialFilter::default;
        assert!(Wanted::parse(None).expect("fine").is_everything());
        assert!(parse(none()).expect("fine").is_everything());
        assert!(parse(wire::CredentialFilter { kind: "pgp".to_owned(), ..none() }).is_err());
        assert!(parse(wire::CredentialFilter { pid: -1, ..none() }).is_err());
        let owner = parse(wire::CredentialFilter { owner: "a\nb".to_owned(), pid: 7, ..none() }).expect("fine");
        assert_eq!(owner.written, "owner=\"a\\nb\" pid=7", "one line in the audit log");
        assert!(!owner.is_everything());
    }

    #[test]
    fn whoever_names_one_credential_gets_no_other() {
        let one = Wanted::by_id("4b0c5d").expect("fine");
        assert_eq!(one.names_one(0).expect_err("none").code(), tonic::Code::NotFound);
        assert_eq!(one.names_one(2).expect_err("two").code(), tonic::Code::FailedPrecondition);
        assert!(one.names_one(1).is_ok() && Wanted::default().names_one(0).is_ok());
    }
}
