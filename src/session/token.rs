//! Tokens of a session: each decided at the moment of use, counted before it is signed, written down before it is
//! released, and looked at again in between.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::approvals::{Approval, Asked};
use super::live::{Token, agent, facts};
use super::record::Wanted;
use super::wish::{check_audience, check_scope, check_target, is_within};
use super::{Boundary, EndReason, Session, SessionError, Sessions, Unusable};
use crate::attest::Attested;
use crate::issue::{Acting, Asking, Refusal};
use crate::ledger::{self, Reason};
use crate::peer::PeerConn;
use crate::policy::{Action, Decision, Denial, MintGrant, Question, ToolFacts};
use crate::proof::TargetUri;
use crate::registry::Identity;
use crate::wit::WitSession;

/// Binding level: whoever has it can use it.
const BEARER: u8 = 0;

/// What kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Clone)]
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

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Whoever acts, as a member of the session: the caller, or the process it asks for.
pub(super) struct Member<'a> {
    pub(super) peer: &'a PeerConn,
    pub(super) session: Arc<Session>,
    pub(super) acting: Acting,
    pub(super) identity: Identity,
}

impl Member<'_> {
    /// What tokens are worth that it is given: never more than its session.
    pub(super) fn binding(&self) -> u8 {
        self.acting.binding().min(self.session.terms().binding)
    }
}

/// What policy permitted, and by whose word.
pub(super) struct Permitted<T> {
    pub(super) permit: T,
    pub(super) decision: Decision,
    pub(super) approval: Option<Approval>,
}

impl<T> Permitted<T> {
    pub(super) fn approval_id(&self) -> Option<String> {
        self.approval.as_ref().map(|approval| approval.id.to_string())
    }
}

/// Who a WIT is minted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Whoever asked for it, and names it when it is to be proven with.
    Caller,
    /// Proofs to come.
    Proofs,
    /// One proof, which is made next.
    OneProof,
}

impl Sessions {
    /// Mints a token of a session the caller, or whom it asks for, is a member of. An empty `id` stands for the one
    /// session it is in.
    ///
    /// # Errors
    /// [`SessionError`]; a budget that is spent ends the session.
    pub async fn mint(&self, asking: Asking<'_>, id: &str, wish: &MintWish) -> Result<Minted, SessionError> {
        let member = self.as_member(asking, id).await;
        let known = match &member {
            Ok(member) => member.session.terms().id.to_string(),
            Err(_) => id.to_owned(),
        };
        let minted = async {
            let member = member?;
            self.usable(&member.session).await?;
            match wish.kind {
                TokenKind::Wit => {
                    check_target("target", &wish.target)?;
                    wish.scopes.iter().try_for_each(|scope| check_scope(scope))?;
                    self.mint_wit(&member, &wish.target, &wish.scopes, For::Caller).await.map(|(minted, _)| minted)
                }
                TokenKind::Jwt => {
                    check_audience(&wish.target)?;
                    if !wish.scopes.is_empty() {
                        let why = "are for tokens that are proven: a bearer token carries none".to_owned();
                        return Err(SessionError::Field { field: "scopes", why });
                    }
                    self.mint_jwt(&member, &wish.target).await
                }
            }
        };
        let minted = minted.await;
        let wanted =
            Wanted { action: Action::Mint, session: &known, txn: "", target: &wish.target, tool: "", arguments: None };
        self.recorded(asking.peer, wanted, minted)
    }

    pub(super) async fn mint_wit(
        &self,
        member: &Member<'_>,
        target: &str,
        scopes: &[String],
        whom: For,
    ) -> Result<(Minted, Token), SessionError> {
        let Member { session, acting: Acting { entitled, .. }, identity, .. } = member;
        let (terms, binding) = (session.terms(), member.binding());
        self.has_room(session)?;
        let scopes = self.narrowed(session, target, scopes)?;
        let permitted = self.may_mint(session, target, TokenKind::Wit, &scopes).await?;
        let one_use =
            whom == For::OneProof || permitted.decision.obligations.one_use || terms.boundary == Boundary::ToolCall;
        self.spend(session, 1, 0).await?;
        self.use_up(permitted.approval.as_ref()).await?;
        let now = self.now();
        let Some(confirmation) = self.issuer().held.session_key(terms.id.as_str()) else {
            return Err(SessionError::Ended(session.state().end_reason().unwrap_or(EndReason::AgentRestart)));
        };
        let entry = self.issuer().policy.issue_wit(&entitled.attested, identity, binding, now)?;
        let ends = ends(entry.not_after(now), session, permitted.approval.as_ref());
        let approval = permitted.approval_id();
        let Permitted { permit, decision, approval: agreed } = permitted;
        let grant = permit.into_wit((ends - now).unsigned_abs(), Some(ends));
        let claim = WitSession {
            sid: terms.id.to_string(),
            // In its one form: verifiers compare it with URIs.
            target: TargetUri::parse(target).map_or_else(|_| target.to_owned(), |uri| uri.as_str().to_owned()),
            scope: scopes.join(" "),
            one_use,
            binding,
            introspect: self.0.parts.settings.introspect_url.clone(),
        };
        let signers = entitled.trust.signers();
        let signed = signers.sign_wit(grant, &confirmation, Some(&claim), now).await.map_err(Refusal::Authority)?;
        let token = Token {
            id: signed.jti,
            kind: TokenKind::Wit,
            wit: Some(signed.token.into()),
            target: claim.target,
            scope: claim.scope,
            one_use,
            for_any: whom == For::Proofs && !one_use,
            binding,
            approval,
            authority: signed.authority,
            expires_at: signed.expires_at,
        };
        let issued = ledger::Issued {
            id: &token.id,
            kind: ledger::Kind::Wit,
            audience: std::slice::from_ref(&token.target),
            authority: &token.authority,
            binding,
            held: true,
            not_after: token.expires_at,
            single_use: one_use,
            ..entitled.issued(identity)
        };
        let minted = Minted {
            session: session.clone(),
            kind: TokenKind::Wit,
            token: token.wit.clone().unwrap_or_default(),
            id: token.id.clone(),
            target: token.target.clone(),
            scopes,
            expires_at: token.expires_at,
            one_use,
            binding,
        };
        // One that goes with the proof that is made next is not needed again.
        let kept = Token { wit: token.wit.clone().filter(|_| whom == For::Caller || token.for_any), ..token.clone() };
        self.release(member, &issued, kept, &minted, &decision, agreed.as_ref())?;
        Ok((minted, token))
    }

    async fn mint_jwt(&self, member: &Member<'_>, audience: &str) -> Result<Minted, SessionError> {
        let Member { session, acting: Acting { entitled, .. }, identity, .. } = member;
        self.has_room(session)?;
        self.narrowed(session, audience, &[])?;
        let permitted = self.may_mint(session, audience, TokenKind::Jwt, &[]).await?;
        self.spend(session, 1, 0).await?;
        self.use_up(permitted.approval.as_ref()).await?;
        let now = self.now();
        let audiences = [audience.to_owned()];
        let entry = self.issuer().policy.issue_jwt(&entitled.attested, identity, &audiences, now)?;
        let ends = ends(entry.not_after(now), session, permitted.approval.as_ref());
        let approval = permitted.approval_id();
        let Permitted { permit, decision, approval: agreed } = permitted;
        // Policy was asked about a bearer token, so there is one.
        let grant = permit.into_jwt((ends - now).unsigned_abs(), Some(ends)).ok_or(SessionError::NotFound)?;
        let signed = entitled.trust.signers().sign_jwt(grant, now).await.map_err(Refusal::Authority)?;
        let one_use = decision.obligations.one_use
            || session.terms().boundary == Boundary::ToolCall
            || identity.entry.is_single_use();
        let token = Token {
            id: signed.jti,
            kind: TokenKind::Jwt,
            wit: None,
            target: audience.to_owned(),
            scope: String::new(),
            one_use,
            for_any: false,
            binding: BEARER,
            approval,
            authority: signed.authority,
            expires_at: signed.expires_at,
        };
        let issued = ledger::Issued {
            id: &token.id,
            kind: ledger::Kind::Jwt,
            audience: &audiences,
            authority: &token.authority,
            binding: BEARER,
            not_after: token.expires_at,
            single_use: one_use,
            ..entitled.issued(identity)
        };
        let minted = Minted {
            session: session.clone(),
            kind: TokenKind::Jwt,
            token: signed.token.into(),
            id: token.id.clone(),
            target: audience.to_owned(),
            scopes: Vec::new(),
            expires_at: token.expires_at,
            one_use,
            binding: BEARER,
        };
        self.release(member, &issued, token.clone(), &minted, &decision, agreed.as_ref())?;
        Ok(minted)
    }

    /// Writes a token down wherever it must be found when it is to end, and looks again at what it was permitted by. Nothing
    /// waits in here: whoever ends the session, withdraws the approval or changes the policies afterwards finds it.
    fn release(
        &self,
        member: &Member<'_>,
        issued: &ledger::Issued<'_>,
        token: Token,
        minted: &Minted,
        decision: &Decision,
        approval: Option<&Approval>,
    ) -> Result<(), SessionError> {
        let Member { session, acting, .. } = member;
        let issued = &ledger::Issued { delegate: acting.delegate().copied(), ..*issued };
        self.issuer().write_down(&acting.instance, &acting.entitled, &session.tie(), issued)?;
        let kept = || {
            let event = super::record::minted(member, minted, token.approval.as_deref(), decision);
            self.issuer().audit.before(event)?;
            self.journal().token(&session.terms().id, &token).map_err(SessionError::Journal)?;
            session.inner().tokens.push(token);
            self.look_again(member, decision, approval)
        };
        let kept = kept();
        if kept.is_err() {
            self.issuer().ledger.withdraw(issued.id, Reason::SessionEnded)?;
        }
        kept
    }

    fn has_room(&self, session: &Session) -> Result<(), SessionError> {
        if session.has_room(self.now()) { Ok(()) } else { Err(SessionError::TooManyTokens) }
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

    /// What policy says of a token for this target, with the approval that it takes.
    async fn may_mint(
        &self,
        session: &Arc<Session>,
        target: &str,
        kind: TokenKind,
        scopes: &[String],
    ) -> Result<Permitted<MintGrant>, SessionError> {
        let tool = ToolFacts { uri: target, method: "", name: "", rpc: "", arguments_sha256: "", kind: kind.as_str() };
        let mint = |approved| {
            let question = in_session(session, Action::Mint, tool, approved, self.now());
            let permit = self.issuer().policy.mint_token(&question)?;
            let decision = permit.decision().clone();
            Ok((permit, decision))
        };
        self.with_approval(session, Action::Mint, tool, scopes, mint).await
    }

    /// Asks policy, and where it wants a person's word, whether that was given. It is used up by [`Self::use_up`].
    pub(super) async fn with_approval<T>(
        &self,
        session: &Arc<Session>,
        action: Action,
        tool: ToolFacts<'_>,
        scopes: &[String],
        ask: impl Fn(bool) -> Result<(T, Decision), Denial>,
    ) -> Result<Permitted<T>, SessionError> {
        let (why, policies) = match ask(false) {
            Ok((permit, decision)) => return Ok(Permitted { permit, decision, approval: None }),
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
            scopes,
            why: &why,
            policies: &policies,
        };
        let covering = self.approvals().covering(&asked).and_then(|id| self.approvals().find(id.as_str()));
        let Some(approval) = covering else {
            let waiting = self.approvals().request(&asked).await?;
            return Err(SessionError::StepUp { approval: waiting.id.to_string(), why });
        };
        let (permit, decision) = ask(true)?;
        Ok(Permitted { permit, decision, approval: Some(approval) })
    }

    /// Takes one use of an approval, as late as can be: what is refused before has cost none.
    pub(super) async fn use_up(&self, approval: Option<&Approval>) -> Result<(), SessionError> {
        match approval {
            Some(approval) => Ok(self.approvals().use_up(&approval.id).await?),
            None => Ok(()),
        }
    }

    /// Counts against the budget of a session and of all above it, and writes that down. What is too much ends the
    /// session whose budget it is.
    pub(super) async fn spend(&self, session: &Arc<Session>, tokens: u32, calls: u32) -> Result<(), SessionError> {
        let over = |used: u32, more: u32, most: u32| most != 0 && used.saturating_add(more) > most;
        let counted = {
            // Under one lock, so that a budget that many share is not spent twice.
            let book = self.book();
            let lineage = book.lineage(&session.terms().id);
            let spent = lineage.iter().find_map(|session| {
                let (used, budget) = (session.used(), session.terms().budget);
                if tokens > 0 && over(used.tokens, tokens, budget.max_tokens) {
                    return Some((session.clone(), "tokens"));
                }
                (calls > 0 && over(used.calls, calls, budget.max_calls)).then(|| (session.clone(), "calls"))
            });
            match spent {
                Some(spent) => Err(spent),
                None => Ok(lineage.iter().map(|session| session.count(tokens, calls)).collect::<Vec<_>>()),
            }
        };
        match counted {
            Ok(used) => self.journal().used(&used).map_err(SessionError::Journal),
            Err((session, what)) => {
                self.end(&session.terms().id, EndReason::BudgetSpent, "").await?;
                Err(SessionError::Budget(what))
            }
        }
    }

    /// The check to make before every release: the caller is who it was, the session and all above it stand, and policy
    /// and approval are those it was decided by. Nothing waits after it.
    pub(super) fn look_again(
        &self,
        member: &Member<'_>,
        decision: &Decision,
        approval: Option<&Approval>,
    ) -> Result<(), SessionError> {
        let facts = member.acting.look().map_err(Refusal::Look)?;
        let same_policies = self.issuer().policy.set().digest() == &*decision.set;
        if !Attested::is_of(&member.acting.entitled.attested, &facts) || !same_policies {
            return Err(Refusal::Changed.into());
        }
        if let Some(approval) = approval {
            let now = self.now();
            let stands = self.approvals().find(approval.id.as_str()).is_some_and(|approval| approval.stands(now));
            if !stands {
                return Err(SessionError::Withdrawn(approval.id.to_string()));
            }
        }
        self.stands(&member.session).map_err(|(_, unusable)| unusable.into())
    }

    /// Whether a session and all above it may be used at this moment; if not, which of them may not. Waits for nothing.
    pub fn stands(&self, session: &Session) -> Result<(), (super::SessionId, Unusable)> {
        let now = self.now();
        session.usable(now).map_err(|unusable| (session.terms().id.clone(), unusable))?;
        if session.terms().parent.is_none() {
            return Ok(());
        }
        let lineage = self.book().lineage(&session.terms().id);
        let whole = lineage.last().is_some_and(|top| top.terms().parent.is_none());
        for above in lineage.iter().skip(1) {
            above.usable(now).map_err(|unusable| (above.terms().id.clone(), unusable))?;
        }
        // One that is not known any more ended long ago.
        if whole { Ok(()) } else { Err((session.terms().id.clone(), Unusable::MustEnd(EndReason::ParentEnded))) }
    }

    /// The same; what is due to end ends here.
    pub(super) async fn usable(&self, session: &Session) -> Result<(), SessionError> {
        match self.stands(session) {
            Ok(()) => Ok(()),
            Err((id, Unusable::MustEnd(reason))) => {
                self.end(&id, reason, "").await?;
                Err(SessionError::Ended(session.state().end_reason().unwrap_or(reason)))
            }
            Err((_, unusable)) => Err(unusable.into()),
        }
    }
}

/// When a token ends: never after its entry, its session or its approval.
fn ends(entry: OffsetDateTime, session: &Session, approval: Option<&Approval>) -> OffsetDateTime {
    let ends = entry.min(session.ends_at());
    approval.map_or(ends, |approval| ends.min(approval.expires_at))
}

pub(super) fn in_session<'a>(
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
        reach: None,
        tool: Some(tool),
        approved,
        now,
    }
}
