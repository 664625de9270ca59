//! SVIDs as systemd credentials: units name the socket in `LoadCredential=NAME:/run/tether/credentials.sock`.
//!
//! # What is promised
//! - Nobody is given anything but systemd itself, on its way to start the unit ([`SystemdCaller`]); and the unit is the
//!   one that systemd, asked on its own, says that this process is in. The address of the caller alone is no evidence.
//! - All that one start of a unit is given comes from one issued SVID: certificate and key match, whatever the order in
//!   which they are asked for. It stands until that start is over.
//! - A refusal keeps the unit from starting. The protocol has no word for "no", and an answer without a byte would be an
//!   empty credential; but systemd takes no credential above a size, so more than that is sent, in zeros
//!   ([`LARGEST_CREDENTIAL`]). Whoever is not believed gets the same: should it be systemd after all, its unit does not
//!   start with nothing in its hands.
//!
//! # What is not
//! A credential is a key or token in a file, which systemd keeps in memory that only the unit's user can read: whoever can
//! read it can use it until it ends. systemd reads it when the unit starts, and not again while it runs.

mod asked;
mod starts;

use std::collections::HashSet;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

pub use self::asked::{Asked, Content, fuzz_credential_address};
use self::starts::{Given, MAX_STARTS, Start, Starts};
use crate::attest::{StartingError, StartingUnit, StartingUnits};
use crate::audit::{Caller, Event};
use crate::base::drain;
use crate::base::exhaustion::Exhaustion;
use crate::base::secret::Secret;
use crate::issue::{Issuer, UnitRefusal, UnitSvid};
use crate::metrics;
use crate::peer::{NotSystemd, SystemdCaller};
use crate::sys::socket::{self, SocketError, SocketFile, peer_credentials};
use crate::x509::{Chain, X509Error, pkcs8_to_pem};

/// The largest credential that systemd takes, in bytes; with more the unit does not start (systemd.exec(5)).
pub const LARGEST_CREDENTIAL: usize = 1024 * 1024;
/// Nobody waits longer for an answer: systemd waits for it before it starts the unit.
const DEADLINE: Duration = Duration::from_secs(10);
/// Callers that are answered at once; the others wait. Only root can connect.
const MAX_CONNECTIONS: usize = 256;
/// What a refusal is sent in.
const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];

/// Why systemd does not get a credential for a unit.
#[derive(Debug, Error)]
pub enum NotGiven {
    /// The caller is systemd, and its address does not say what it wants.
    #[error("the caller's address does not say which credential of which unit is asked for")]
    Address,
    /// There is no such credential.
    #[error(
        "there is no credential of this name; there are svid.pem (tls.crt), svid_key.pem (tls.key), svid-with-key.pem, \
         bundle.pem (ca.crt), crl.pem, jwt and jwt-AUDIENCE"
    )]
    Name,
    /// It is not known which unit is being started.
    #[error(transparent)]
    Unit(#[from] StartingError),
    /// The unit may not have it.
    #[error(transparent)]
    Refused(#[from] UnitRefusal),
    /// What was signed cannot be written.
    #[error("BUG: what was signed cannot be read: {0}")]
    Unreadable(#[from] X509Error),
    /// It is larger than systemd takes.
    #[error("it has {0} bytes, and systemd takes no more than {LARGEST_CREDENTIAL}")]
    TooLarge(usize),
    /// Who asked is no longer there.
    #[error("whoever asked is no longer systemd: {0}")]
    Gone(#[from] NotSystemd),
    /// As many starts of units have a certificate as may have one at a time.
    #[error("{MAX_STARTS} units that run have certificates from here, and no more can: stop some of them")]
    Full,
    /// It took too long.
    #[error("there was no answer within {DEADLINE:?}")]
    Late,
}

impl NotGiven {
    /// A stable name for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Name => "unknown_credential",
            Self::Unit(_) => "unknown_unit",
            Self::Refused(refusal) => refusal.as_str(),
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge(_) => "too_large",
            Self::Gone(_) => "not_systemd",
            Self::Full => "full",
            Self::Late => "late",
        }
    }
}

/// The socket that units name.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    /// Removed with the listener. One that was handed to us is not ours to remove.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Serves `handed`, if the service manager has bound `path` for us, else listens there for root alone. Call it inside
    /// a runtime.
    pub fn open(
        handed: Option<std::os::unix::net::UnixListener>,
        path: &Path,
        issuer: &Issuer,
    ) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { action: "listen on", path: path.to_owned(), source };
        let (listener, file) = match handed {
            Some(listener) => (listener, None),
            None => {
                let listener = socket::listen_at(path, 0o600, issuer.instances.kernel())?;
                (listener, Some(SocketFile::of(path).map_err(failed)?))
            }
        };
        Ok(Self { listener: UnixListener::from_std(listener).map_err(failed)?, _file: file })
    }
}

/// Gives credentials to units that systemd starts.
#[derive(Debug)]
pub struct Credentials {
    issuer: Arc<Issuer>,
    units: StartingUnits,
    /// What each start of a unit was given.
    starts: Starts,
}

impl Credentials {
    /// Issues through `issuer` what the units are entitled to by what `units` says of them.
    pub fn new(issuer: Arc<Issuer>, units: StartingUnits) -> Self {
        Self { issuer, units, starts: Starts::default() }
    }

    /// Serves until the drain begins.
    pub async fn serve(self: Arc<Self>, listener: Listener, mut drain: drain::Watcher) {
        let (mut ended, mut entries) = (self.issuer.ledger.revocations(), self.issuer.registry.clone());
        let (exhaustion, slots) = (Exhaustion::default(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        loop {
            // Whoever finds no place waits in the queue of the socket: to hang up would be an empty credential.
            let next = async { (slots.clone().acquire_owned().await, listener.listener.accept().await) };
            tokio::select! {
                // Those in the queue of a socket that systemd keeps wait for the next agent, and others see the connection
                // broken, which is a refusal; those who were let in are answered.
                () = drain.draining() => return,
                // The agent outlives neither of the two senders without draining first.
                Ok(()) = ended.changed() => self.forget_ended().await,
                Ok(()) = entries.changed() => self.forget_ended().await,
                (slot, accepted) = next => match accepted {
                    Ok((socket, _)) => {
                        exhaustion.over();
                        let (service, until_answered) = (self.clone(), drain.clone());
                        tokio::spawn(async move {
                            service.answer(socket).await;
                            drop((slot, until_answered));
                        });
                    }
                    Err(error) => exhaustion.wait_out("credentials socket", &error).await,
                },
            }
        }
    }

    /// Answers one caller: with the credential, or with the refusal, which is the same for all.
    async fn answer(&self, mut socket: UnixStream) {
        let given = match SystemdCaller::of(&self.issuer.instances, &socket) {
            Ok(caller) => self.in_time(&caller, asked_by(&socket)).await,
            Err(disbelief) => {
                self.record_disbelief(&socket, &disbelief);
                None
            }
        };
        let sending = async {
            match given {
                Some(credential) => socket.write_all(credential.expose()).await,
                None => refuse(&mut socket).await,
            }
        };
        // Who hangs up has its reasons, and who does not read gets no more of our time.
        let _ = tokio::time::timeout(DEADLINE, sending).await;
    }

    /// What systemd gets; a refusal is recorded.
    async fn in_time(&self, caller: &SystemdCaller, asked: Option<Asked>) -> Option<Secret<Vec<u8>>> {
        let given = match &asked {
            Some(asked) => tokio::time::timeout(DEADLINE, self.credential(caller, asked)).await,
            None => Ok(Err(NotGiven::Address)),
        };
        let given = given.unwrap_or(Err(NotGiven::Late));
        given.map_err(|refusal| self.record_refusal(caller, asked.as_ref(), &refusal)).ok()
    }

    /// One straight path: what is asked for, of which unit, is it entitled to it, is it written down, is systemd still
    /// there.
    async fn credential(&self, caller: &SystemdCaller, asked: &Asked) -> Result<Secret<Vec<u8>>, NotGiven> {
        let content = Content::of(&asked.name).ok_or(NotGiven::Name)?;
        let unit = self.units.attest(caller, &asked.unit).await?;
        let credential = match content {
            Content::Jwt(audience) => self.token(&unit, asked, audience.as_deref()).await?,
            content => self.of_svid(&unit, asked, &content).await?,
        };
        caller.still()?;
        Ok(credential)
    }

    async fn token(
        &self,
        unit: &StartingUnit,
        asked: &Asked,
        audience: Option<&str>,
    ) -> Result<Secret<Vec<u8>>, NotGiven> {
        let token = self.issuer.unit_jwt(unit, audience).await?;
        let (of, jti) = ((&token.spiffe_id, &*token.entry), &token.signed.jti);
        self.issuer.before_given(unit, &asked.name, of, jti)?;
        Ok(Secret::new(token.signed.token.into_bytes()))
    }

    async fn of_svid(
        &self,
        unit: &StartingUnit,
        asked: &Asked,
        content: &Content,
    ) -> Result<Secret<Vec<u8>>, NotGiven> {
        let start = Start { unit: unit.name().as_str().to_owned(), invocation: unit.invocation().to_owned() };
        let asking = self.starts.ask(start, self.issuer.clock.now()).ok_or(NotGiven::Full)?;
        // Held while signing: the next question of the same start waits for the same SVID.
        let mut given = asking.given().await;
        // What was given before belongs together. A name that is asked for again begins another round (each command of a
        // unit reads all of them), and half-way through its life a round gets a new SVID.
        let again = given.names.contains(&asked.name);
        let now = self.issuer.clock.now();
        let kept = given.svid.as_ref().filter(|svid| !again || now < svid.renew_at()).cloned();
        let svid = self.issuer.unit_svid(unit, kept.as_ref()).await?;
        if !given.svid.as_ref().is_some_and(|known| Arc::ptr_eq(known, &svid)) {
            *given = Given { svid: Some(svid.clone()), names: HashSet::new() };
        }
        let text = self.text(&svid, content)?;
        if text.expose().len() > LARGEST_CREDENTIAL {
            return Err(NotGiven::TooLarge(text.expose().len()));
        }
        let of = (&svid.spiffe_id, svid.entry());
        self.issuer.before_given(unit, &asked.name, of, &svid.svid.signed.serial)?;
        given.names.insert(asked.name.clone());
        Ok(text)
    }

    fn text(&self, svid: &UnitSvid, content: &Content) -> Result<Secret<Vec<u8>>, NotGiven> {
        let chain = || Chain::from_der(&svid.svid.signed.chain).map(|chain| chain.to_pem());
        let key = || pkcs8_to_pem(svid.svid.key.expose());
        Ok(Secret::new(match content {
            Content::Chain => chain()?.into_bytes(),
            Content::Key => key().expose().as_bytes().to_vec(),
            Content::ChainAndKey => [chain()?.as_bytes(), key().expose().as_bytes()].concat(),
            Content::Bundle => svid.bundles.own.x509().to_pem().into_bytes(),
            Content::Crl => self.issuer.crls.latest().to_pem().concat().into_bytes(),
            Content::Jwt(_) => return Err(NotGiven::Name),
        }))
    }

    /// Forgets the keys of what no longer stands, and revokes what the entries no longer give.
    async fn forget_ended(&self) {
        for asking in self.starts.all() {
            let svid = asking.given().await.svid.clone();
            let Some(svid) = svid else { continue };
            match self.issuer.judge_unit_again(&svid).await {
                Ok(true) => {}
                Ok(false) => asking.forget(&svid).await,
                Err(error) => tracing::error!(%error, unit = asking.unit(), "what a unit was given cannot be revoked"),
            }
        }
    }

    fn record_disbelief(&self, socket: &UnixStream, disbelief: &NotSystemd) {
        let known = peer_credentials(socket).ok();
        let (pid, uid) = known.map_or((0, u32::MAX), |sender| (sender.pid, sender.uid));
        let instance = self.issuer.instances.of_peer(socket).map(|instance| instance.id().to_string());
        let caller = Caller { instance: instance.unwrap_or_default(), pid, uid };
        let (reason, detail) = ("not_systemd", format!("only systemd is answered on this socket: {disbelief}"));
        tracing::warn!(pid, uid, %disbelief, "a caller that is not systemd asks for a credential");
        self.issuer.metrics.connections_refused.get_or_create(&metrics::Reason { reason }).inc();
        self.issuer.audit.record(Event::ConnectionRefused { caller, reason, detail });
    }

    fn record_refusal(&self, caller: &SystemdCaller, asked: Option<&Asked>, refusal: &NotGiven) {
        let (unit, name) = asked.map_or(("", ""), |asked| (asked.unit.as_str(), &*asked.name));
        let reason = refusal.as_str();
        tracing::warn!(unit, credential = name, %refusal, "a unit gets no credential, and is not started");
        self.issuer.metrics.refused.get_or_create(&metrics::Reason { reason }).inc();
        let instance = caller.instance();
        let caller = Caller { instance: instance.id().to_string(), pid: instance.pid(), uid: 0 };
        let detail = format!("credential `{name}` of `{unit}`: {refusal}");
        self.issuer.audit.record(Event::Refused { caller, reason, detail });
    }
}

/// What is asked for, by the caller's address.
fn asked_by(socket: &UnixStream) -> Option<Asked> {
    let address = std::os::unix::net::SocketAddr::from(socket.peer_addr().ok()?);
    address.as_abstract_name().and_then(Asked::parse)
}

/// Sends more than systemd takes as a credential, so that the unit does not start.
async fn refuse(socket: &mut UnixStream) -> io::Result<()> {
    let mut sent = 0;
    while sent <= LARGEST_CREDENTIAL {
        socket.write_all(&ZEROS).await?;
        sent += ZEROS.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_refusal_is_more_than_systemd_takes_and_says_nothing() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let sender = tokio::spawn(async move { refuse(&mut ours).await });
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        sender.await.unwrap().unwrap();
        assert!(received.len() > LARGEST_CREDENTIAL);
        assert!(received.iter().all(|byte| *byte == 0));
    }
}
