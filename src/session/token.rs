//! Tokens and proofs of a session: each decided at the moment of use, counted before it is signed, and looked at again
//! afterwards.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::approvals::Asked;
use super::live::{Bearer, Token, agent, facts};
use super::record::Wanted;
use super::wish::{check_scope, check_target, check_tool, check_txn, is_within};
use super::{EndReason, Session, SessionError, Sessions, Unusable};
use crate::attest::Attested;
use crate::base::entropy::hex;
use crate::held::SessionProof;
use crate::id::SpiffeId;
use crate::issue::{Entitled, ProofScheme, Refusal};
use crate::ledger::{self, Reason};
use crate::peer::PeerConn;
use crate::policy::{Action, Denial, Effect, MintGrant, Question, ToolFacts};
use crate::proof::{Actor, LIFETIME, ProofTarget, SessionClaims, SignedProof, SubjectId, TargetUri, TetherClaims};
use crate::registry::Identity;
use crate::wit::WitSession;

/// Binding level: whoever has it can use it.
const BEARER: u8 = 0;
/// A token that ends sooner is not used for a proof any more: the proof could outlive it.
const AT_LEAST: Duration = LIFETIME;

/// What kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A WIT-SVID: of use with proofs alone.
    Wit,
    /// A bearer JWT-SVID.
    Jwt,
}

impl TokenKind {
    /// `wit` or `jwt`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wit => "wit",
            Self::Jwt => "jwt",
        }
    }
}

/// A token somebody wants.
#[derive(Clone, Debug)]
pub struct MintWish {
    /// Where to.
    pub target: String,
    /// Of the session's scopes; none for all.
    pub scopes: Vec<String>,
    /// What kind.
    pub kind: TokenKind,
}

/// A token that was minted.
#[derive(Clone, Debug)]
pub struct Minted {
    /// Its session.
    pub session: Arc<Session>,
    /// What kind.
    pub kind: TokenKind,
    /// The token. A bearer token is worth what it says to whoever has it.
    pub token: Arc<str>,
    /// Its `jti`.
    pub id: String,
    /// Where to.
    pub target: String,
    /// What of.
    pub scopes: Vec<String>,
    /// When it ends.
    pub expires_at: OffsetDateTime,
    /// Whether it is good for one call.
    pub one_use: bool,
    /// What it is worth.
    pub binding: u8,
}

/// A request somebody wants to prove.
#[derive(Clone, Debug)]
pub struct ProveWish<'a> {
    /// The request.
    pub target: ProofTarget,
    /// How.
    pub scheme: ProofScheme<'a>,
    /// The tool behind the URI; empty for none.
    pub tool: String,
    /// SHA-256 of its arguments.
    pub arguments_sha256: Option<[u8; 32]>,
    /// What the call does; at least what its method does.
    pub effect: Option<Effect>,
    /// The transaction; empty for a new one.
    pub txn: String,
}

/// A request that was proven.
#[derive(Clone, Debug)]
pub struct Proven {
    /// Its session.
    pub session: Arc<Session>,
    /// The proof.
    pub proof: SignedProof,
    /// The WIT it goes with; `None` for DPoP.
    pub wit: Option<Arc<str>>,
    /// The transaction.
    pub txn: String,
}

/// Whoever calls, as a member of the session.
struct Member<'a> {
    peer: &'a PeerConn,
    session: &'a Arc<Session>,
    entitled: &'a Entitled,
    identity: &'a Identity,
}

impl Sessions {
    /// Mints a token of a session the caller is a member of. An empty `id` stands for the one session it is in.
    ///
    /// # Errors
    /// [`SessionError`]; a budget that is spent ends the session.
    pub async fn mint(&self, peer: &PeerConn, id: &str, wish: &MintWish) -> Result<Minted, SessionError> {
        let minted = async {
            check_target("target", &wish.target)?;
            wish.scopes.iter().try_for_each(|scope| check_scope(scope))?;
            let (session, entitled, identity) = self.as_member(peer, id).await?;
            self.usable(&session).await?;
            let member = Member { peer, session: &session, entitled: &entitled, identity: &identity };
            match wish.kind {
                TokenKind::Wit => self.mint_wit(&member, &wish.target, &wish.scopes, false, true).await,
                TokenKind::Jwt => self.mint_jwt(&member, &wish.target, &wish.scopes).await,
            }
        };
        let minted = minted.await;
        let wanted =
            Wanted { action: Action::Mint, session: id, txn: "", target: &wish.target, tool: "", arguments: None };
        self.recorded(peer, wanted, minted)
    }

    /// Proves one request in a session the caller is a member of.
    ///
    /// # Errors
    /// [`SessionError`]; a budget that is spent ends the session.
    pub async fn prove(&self, peer: &PeerConn, id: &str, wish: &ProveWish<'_>) -> Result<Proven, SessionError> {
        let proven = self.prove_inner(peer, id, wish).await;
        let wanted = Wanted {
            action: Action::Call(effect_of(wish)),
            session: id,
            txn: &wish.txn,
            target: wish.target.uri.as_str(),
            tool: &wish.tool,
            arguments: wish.arguments_sha256,
        };
        self.recorded(peer, wanted, proven)
    }

    async fn prove_inner(&self, peer: &PeerConn, id: &str, wish: &ProveWish<'_>) -> Result<Proven, SessionError> {
        check_tool(&wish.tool)?;
        check_txn(&wish.txn)?;
        let (session, entitled, identity) = self.as_member(peer, id).await?;
        self.usable(&session).await?;
        let terms = session.terms();
        let uri = &wish.target.uri;
        let Some(target) = session.target_for(uri) else {
            return Err(SessionError::Target(uri.as_str().to_owned()));
        };
        let effect = effect_of(wish);
        let arguments = wish.arguments_sha256.map(|digest| hex(&digest)).unwrap_or_default();
        let tool = ToolFacts {
            uri: uri.as_str(),
            method: wish.target.method.as_str(),
            name: &wish.tool,
            arguments_sha256: &arguments,
            kind: TokenKind::Wit.as_str(),
        };
        let action = Action::Call(effect);
        let call = |approved| {
            let question = in_session(&session, action, tool, approved, self.now());
            self.issuer().policy.call(&question)
        };
        let (permit, approval) = self.with_approval(&session, action, tool, call).await?;
        let decision = permit.decision().clone();
        let member = Member { peer, session: &session, entitled: &entitled, identity: &identity };
        let one_use = decision.obligations.one_use;
        let token = match wish.scheme {
            ProofScheme::Wpt => Some(self.token(&member, target, uri, one_use).await?),
            ProofScheme::Dpop { .. } => None,
        };
        let txn = if wish.txn.is_empty() { self.issuer().entropy.hex::<16>() } else { wish.txn.clone() };
        let call = Call { tool, effect, approval: approval.as_deref(), txn: &txn, arguments: wish.arguments_sha256 };
        let claims = claims(&session, &call, token.as_ref().map(|token| token.scope.as_str()));
        self.spend(&session, 0, 1).await?;
        let now = self.now();
        // Nothing waits after this.
        self.look_again(&member, now)?;
        let proof = match (wish.scheme, &token) {
            (ProofScheme::Dpop { access_token, nonce }, _) => SessionProof::Dpop { access_token, nonce },
            (ProofScheme::Wpt, Some(token)) => SessionProof::Wpt { wit: &token.wit, claims: &claims },
            (ProofScheme::Wpt, None) => return Err(SessionError::Ended(EndReason::Expired)),
        };
        let proof = self.issuer().held.prove_in_session(permit, terms.id.as_str(), proof, &wish.target, now)?;
        {
            let mut inner = session.inner();
            inner.last_proof_until =
                Some(inner.last_proof_until.map_or(proof.expires_at, |at| at.max(proof.expires_at)));
        }
        let event = super::record::proven(peer, &session, &call, &wish.target, token.as_ref(), &proof, &decision);
        self.issuer().audit.before(event)?;
        session.usable(self.now())?;
        Ok(Proven { wit: token.map(|token| token.wit), session, proof, txn })
    }

    /// A token that goes with a proof of a request to `uri`: one that is there, or a new one.
    async fn token(
        &self,
        member: &Member<'_>,
        target: &str,
        uri: &TargetUri,
        one_use: bool,
    ) -> Result<Token, SessionError> {
        let session = member.session;
        // One target per token: where the session may go anywhere, the token goes to this very place.
        let target = if target == "*" { uri.as_str() } else { target };
        if !one_use && let Some(token) = session.token_for(uri, self.now() + AT_LEAST) {
            return Ok(token);
        }
        let _turn = session.minting.lock().await;
        if !one_use && let Some(token) = session.token_for(uri, self.now() + AT_LEAST) {
            return Ok(token);
        }
        let minted = self.mint_wit(member, target, &[], one_use, false).await?;
        let scope = minted.scopes.join(" ");
        Ok(Token {
            id: minted.id,
            wit: minted.token,
            target: minted.target,
            scope,
            one_use: minted.one_use,
            approval: None,
            authority: Arc::from(""),
            expires_at: minted.expires_at,
        })
    }

    async fn mint_wit(
        &self,
        member: &Member<'_>,
        target: &str,
        scopes: &[String],
        one_use: bool,
        for_caller: bool,
    ) -> Result<Minted, SessionError> {
        let Member { session, entitled, identity, .. } = member;
        let terms = session.terms();
        let scopes = self.narrowed(session, target, scopes)?;
        let (permit, approval) = self.may_mint(session, target, TokenKind::Wit).await?;
        let decision = permit.decision().clone();
        let one_use = one_use || decision.obligations.one_use || terms.boundary == super::Boundary::ToolCall;
        self.spend(session, 1, 0).await?;
        let now = self.now();
        let Some(confirmation) = self.issuer().held.session_key(terms.id.as_str()) else {
            return Err(SessionError::Ended(session.state().end_reason().unwrap_or(EndReason::AgentRestart)));
        };
        let entry = self.issuer().policy.issue_wit(&entitled.attested, identity, terms.binding, now)?;
        let ends = entry.not_after(now).min(session.ends_at());
        let grant = permit.into_wit((ends - now).unsigned_abs(), Some(ends));
        let claim = WitSession {
            sid: terms.id.to_string(),
            target: target.to_owned(),
            scope: scopes.join(" "),
            one_use,
            binding: terms.binding,
            introspect: self.0.parts.settings.introspect_url.clone(),
        };
        let signers = entitled.trust.signers();
        let signed = signers.sign_wit(grant, &confirmation, Some(&claim), now).await.map_err(Refusal::Authority)?;
        let token = Token {
            id: signed.jti,
            wit: signed.token.into(),
            target: claim.target,
            scope: claim.scope,
            one_use,
            approval,
            authority: signed.authority,
            expires_at: signed.expires_at,
        };
        let issued = ledger::Issued {
            id: &token.id,
            kind: ledger::Kind::Wit,
            audience: std::slice::from_ref(&token.target),
            authority: &token.authority,
            binding: terms.binding,
            held: true,
            not_after: token.expires_at,
            single_use: one_use,
            ..entitled.issued(identity)
        };
        self.write_down(member, &issued)?;
        let minted = Minted {
            session: (*session).clone(),
            kind: TokenKind::Wit,
            token: token.wit.clone(),
            id: token.id.clone(),
            target: token.target.clone(),
            scopes,
            expires_at: token.expires_at,
            one_use,
            binding: terms.binding,
        };
        self.issuer().audit.before(super::record::minted(
            member.peer,
            &minted,
            token.approval.as_deref(),
            &decision,
        ))?;
        // One that is good for one proof belongs to whoever asked for it: the caller, or the proof it was minted for.
        session.keep_token(Token { one_use: one_use && !for_caller, ..token }, now);
        self.look_again(member, now)?;
        Ok(minted)
    }

    async fn mint_jwt(&self, member: &Member<'_>, audience: &str, scopes: &[String]) -> Result<Minted, SessionError> {
        let Member { session, entitled, identity, .. } = member;
        let scopes = self.narrowed(session, audience, scopes)?;
        let (permit, approval) = self.may_mint(session, audience, TokenKind::Jwt).await?;
        let decision = permit.decision().clone();
        self.spend(session, 1, 0).await?;
        let now = self.now();
        let audiences = [audience.to_owned()];
        let issuer = self.issuer();
        let entry = issuer.policy.issue_jwt(&entitled.attested, identity, &audiences, now)?;
        let ends = entry.not_after(now).min(session.ends_at());
        // Policy was asked about a bearer token, so there is one.
        let grant = permit.into_jwt((ends - now).unsigned_abs(), Some(ends)).ok_or(SessionError::NotFound)?;
        let signed = entitled.trust.signers().sign_jwt(grant, now).await.map_err(Refusal::Authority)?;
        let one_use = decision.obligations.one_use
            || session.terms().boundary == super::Boundary::ToolCall
            || identity.entry.is_single_use();
        let issued = ledger::Issued {
            id: &signed.jti,
            kind: ledger::Kind::Jwt,
            audience: &audiences,
            authority: &signed.authority,
            binding: BEARER,
            not_after: signed.expires_at,
            single_use: one_use,
            ..entitled.issued(identity)
        };
        self.write_down(member, &issued)?;
        let minted = Minted {
            session: (*session).clone(),
            kind: TokenKind::Jwt,
            token: signed.token.into(),
            id: signed.jti.clone(),
            target: audience.to_owned(),
            scopes,
            expires_at: signed.expires_at,
            one_use,
            binding: BEARER,
        };
        issuer.audit.before(super::record::minted(member.peer, &minted, approval.as_deref(), &decision))?;
        {
            let mut inner = session.inner();
            inner.bearers.retain(|known| known.expires_at > now);
            inner.bearers.push(Bearer {
                id: signed.jti,
                audience: audience.to_owned(),
                approval,
                authority: signed.authority,
                expires_at: signed.expires_at,
            });
        }
        self.look_again(member, now)?;
        Ok(minted)
    }

    /// The scopes a token is to have; the target must lie within the session's.
    fn narrowed(&self, session: &Session, target: &str, scopes: &[String]) -> Result<Vec<String>, SessionError> {
        let terms = session.terms();
        if target == "*" || !terms.targets.iter().any(|outer| is_within(target, outer)) {
            return Err(SessionError::Target(target.to_owned()));
        }
        if let Some(scope) = scopes.iter().find(|scope| !terms.scopes.contains(scope)) {
            return Err(SessionError::Scope(scope.clone()));
        }
        Ok(if scopes.is_empty() { terms.scopes.clone() } else { scopes.to_vec() })
    }

    /// What policy says of a token for this target, with the approval that it took.
    async fn may_mint(
        &self,
        session: &Arc<Session>,
        target: &str,
        kind: TokenKind,
    ) -> Result<(MintGrant, Option<String>), SessionError> {
        let tool = ToolFacts { uri: target, method: "", name: "", arguments_sha256: "", kind: kind.as_str() };
        let mint = |approved| {
            let question = in_session(session, Action::Mint, tool, approved, self.now());
            self.issuer().policy.mint_token(&question)
        };
        self.with_approval(session, Action::Mint, tool, mint).await
    }

    /// Asks policy; where it wants a person's word and that was given, uses one of its uses up.
    async fn with_approval<T>(
        &self,
        session: &Arc<Session>,
        action: Action,
        tool: ToolFacts<'_>,
        ask: impl Fn(bool) -> Result<T, Denial>,
    ) -> Result<(T, Option<String>), SessionError> {
        let (why, policies) = match ask(false) {
            Ok(permitted) => return Ok((permitted, None)),
            Err(Denial::StepUp { why, policies, .. }) => (why, policies),
            Err(denial) => return Err(denial.into()),
        };
        let terms = session.terms();
        let asked = Asked {
            session: &terms.id,
            spiffe_id: &terms.spiffe_id,
            user: terms.user.as_ref(),
            uid: terms.uid,
            purpose: &terms.purpose,
            action,
            target: tool.uri,
            method: tool.method,
            tool: tool.name,
            arguments_sha256: tool.arguments_sha256,
            kind: if action == Action::Mint { tool.kind } else { "" },
            scopes: &[],
            why: &why,
            policies: &policies,
        };
        let Some(approval) = self.approvals().covering(&asked) else {
            let waiting = self.approvals().request(&asked).await?;
            return Err(SessionError::StepUp { approval: waiting.id.to_string(), why });
        };
        let permitted = ask(true)?;
        self.approvals().use_up(&approval).await?;
        Ok((permitted, Some(approval.to_string())))
    }

    /// Counts against the budget of a session and of all above it, and writes that down. What is too much ends the
    /// session whose budget it is.
    async fn spend(&self, session: &Arc<Session>, tokens: u32, calls: u32) -> Result<(), SessionError> {
        let spent = {
            let book = self.book();
            let lineage: Vec<_> =
                book.lineage(&session.terms().id).iter().filter_map(|id| book.find(id.as_str())).collect();
            let spent = lineage.iter().find_map(|session| {
                let (used, budget) = (session.used(), session.terms().budget);
                let over = |used: u32, more: u32, most: u32| most != 0 && used.saturating_add(more) > most;
                if tokens > 0 && over(used.tokens, tokens, budget.max_tokens) {
                    return Some((session.clone(), "tokens"));
                }
                (calls > 0 && over(used.calls, calls, budget.max_calls)).then(|| (session.clone(), "calls"))
            });
            if spent.is_none() {
                let mut journal = self.journal();
                for session in &lineage {
                    let used = {
                        let mut inner = session.inner();
                        inner.used.tokens = inner.used.tokens.saturating_add(tokens);
                        inner.used.calls = inner.used.calls.saturating_add(calls);
                        inner.used
                    };
                    journal.used(&session.terms().id, used).map_err(SessionError::Journal)?;
                }
            }
            spent
        };
        let Some((over, what)) = spent else { return Ok(()) };
        self.end(&over.terms().id, EndReason::BudgetSpent, "").await?;
        Err(SessionError::Budget(what))
    }

    /// Writes a credential of a session down: it hangs on the session.
    fn write_down(&self, member: &Member<'_>, issued: &ledger::Issued<'_>) -> Result<(), SessionError> {
        let tie = member.session.tie();
        self.issuer().write_down(member.peer.instance(), member.entitled, &tie, issued)?;
        // Ended meanwhile: either its end found this row, or this sees the end.
        if let Err(unusable) = member.session.usable(self.now()) {
            self.issuer().ledger.withdraw(issued.id, Reason::SessionEnded)?;
            return Err(unusable.into());
        }
        Ok(())
    }

    /// The check to make before every release: the caller is who it was, still a member, and the session stands.
    fn look_again(&self, member: &Member<'_>, now: OffsetDateTime) -> Result<(), SessionError> {
        let facts = member.peer.instance().look().map_err(Refusal::Look)?;
        if !Attested::is_of(&member.entitled.attested, &facts) {
            return Err(Refusal::Changed.into());
        }
        Ok(member.session.usable(now)?)
    }

    /// Whether a session may be used now; what is due to end ends here.
    pub(super) async fn usable(&self, session: &Session) -> Result<(), SessionError> {
        match session.usable(self.now()) {
            Ok(()) => Ok(()),
            Err(Unusable::MustEnd(reason)) => {
                self.end(&session.terms().id, reason, "").await?;
                Err(SessionError::Ended(reason))
            }
            Err(unusable) => Err(unusable.into()),
        }
    }
}

/// One call in a session.
pub(super) struct Call<'a> {
    pub(super) tool: ToolFacts<'a>,
    pub(super) effect: Effect,
    pub(super) approval: Option<&'a str>,
    pub(super) txn: &'a str,
    pub(super) arguments: Option<[u8; 32]>,
}

/// What a call does: what its caller says, and never less than its method.
fn effect_of(wish: &ProveWish<'_>) -> Effect {
    let least = Effect::of_method(wish.target.method.as_str());
    wish.effect.map_or(least, |effect| effect.max(least))
}

fn in_session<'a>(
    session: &'a Session,
    action: Action,
    tool: ToolFacts<'a>,
    approved: bool,
    now: OffsetDateTime,
) -> Question<'a> {
    let terms = session.terms();
    Question {
        action,
        agent: agent(terms),
        user: terms.user.as_ref(),
        session: Some(facts(terms, session.used())),
        issue: None,
        tool: Some(tool),
        approved,
        now,
    }
}

/// What the proof of a call says of its session: `docs/session-profile.md`.
fn claims(session: &Session, call: &Call<'_>, scope: Option<&str>) -> SessionClaims {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let terms = session.terms();
    let actors: Vec<&SpiffeId> = std::iter::once(&terms.spiffe_id).chain(&terms.delegated_by).collect();
    let (sub, actors) = match &terms.user {
        Some(user) => (user.subject.clone(), actors.as_slice()),
        // For nobody but the agent at the bottom, which the others act for.
        None => match actors.split_last() {
            Some((bottom, others)) => (bottom.to_string(), others),
            None => (terms.spiffe_id.to_string(), &[][..]),
        },
    };
    let nested = |inner: Option<Actor>, id: &&SpiffeId| Some(Actor { sub: id.to_string(), act: inner.map(Box::new) });
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    SessionClaims {
        sub,
        sub_id: terms.user.as_ref().map(|user| SubjectId {
            format: "iss_sub".to_owned(),
            iss: user.issuer.clone(),
            sub: user.subject.clone(),
        }),
        act: actors.iter().rev().fold(None, nested),
        scope: scope.and_then(some),
        txn: call.txn.to_owned(),
        tether: TetherClaims {
            sid: terms.id.to_string(),
            purpose: terms.purpose.clone(),
            boundary: terms.boundary.as_str().to_owned(),
            effect: call.effect.as_str().to_owned(),
            tool: some(call.tool.name),
            arguments_sha256: call.arguments.map(|digest| URL_SAFE_NO_PAD.encode(digest)),
            approval: call.approval.map(str::to_owned),
        },
    }
}
