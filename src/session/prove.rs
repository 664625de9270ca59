//! Proofs of a session: one request each, made from its method and URI by tether.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::live::{Token, agent};
use super::record::Wanted;
use super::token::{For, Member, Permitted, in_session};
use super::wish::{check_tool, check_txn};
use super::{Boundary, Session, SessionError, Sessions, TokenKind, covers};
use crate::base::entropy::hex;
use crate::held::SessionProof;
use crate::id::SpiffeId;
use crate::issue::{Asking, ProofScheme};
use crate::ledger::Standing;
use crate::policy::{Action, Effect, Question, ToolFacts};
use crate::proof::{Actor, LIFETIME, ProofTarget, SessionClaims, SignedProof, SubjectId, TargetUri, TetherClaims};

/// A token that ends sooner is not used for a proof any more: the proof could outlive it.
const AT_LEAST: Duration = LIFETIME;

/// A request somebody wants to prove.
#[derive(Clone, Debug)]
pub struct ProveWish<'a> {
    /// The request.
    pub target: ProofTarget,
    /// How.
    pub scheme: ProofScheme<'a>,
    /// The id of the token to prove it with, from a mint; `None` for one that is there for any proof, or a new one.
    pub token: Option<&'a str>,
    /// The tool behind the URI; empty for none.
    pub tool: String,
    /// SHA-256 of its arguments.
    pub arguments_sha256: Option<[u8; 32]>,
    /// The method of the one call inside the request (JSON-RPC); empty for none.
    pub rpc: String,
    /// What the call does, as the caller says.
    pub effect: Option<Effect>,
    /// The transaction; empty for a new one.
    pub txn: String,
}

/// A request that was proven.
#[derive(Clone)]
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

impl fmt::Debug for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proven").field("proof", &self.proof.jti).field("txn", &self.txn).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Proves one request in a session the caller, or whom it asks for, is a member of.
    ///
    /// # Errors
    /// [`SessionError`]; a budget that is spent ends the session.
    pub async fn prove(&self, asking: Asking<'_>, id: &str, wish: &ProveWish<'_>) -> Result<Proven, SessionError> {
        let proven = self.prove_inner(asking, id, wish).await;
        let wanted = Wanted {
            action: Action::Call(by_caller(wish)),
            session: id,
            txn: &wish.txn,
            target: wish.target.uri.as_str(),
            tool: &wish.tool,
            arguments: wish.arguments_sha256,
        };
        self.recorded(asking.peer, wanted, proven)
    }

    async fn prove_inner(&self, asking: Asking<'_>, id: &str, wish: &ProveWish<'_>) -> Result<Proven, SessionError> {
        check_tool(&wish.tool)?;
        check_tool(&wish.rpc)?;
        check_txn(&wish.txn)?;
        self.issuer().proofs_count().await;
        let member = self.as_member(asking, id).await?;
        let session = &member.session;
        self.usable(session).await?;
        let terms = session.terms();
        let uri = &wish.target.uri;
        let Some(target) = session.target_for(uri) else {
            return Err(SessionError::Target(uri.as_str().to_owned()));
        };
        let arguments = wish.arguments_sha256.map(|digest| hex(&digest)).unwrap_or_default();
        let tool = ToolFacts {
            uri: uri.as_str(),
            method: wish.target.method.as_str(),
            name: &wish.tool,
            rpc: &wish.rpc,
            arguments_sha256: &arguments,
            kind: TokenKind::Wit.as_str(),
        };
        let effect = self.effect_of(session, wish, tool, asking.on_behalf_of.is_some());
        let action = Action::Call(effect);
        let call = |approved| {
            let permit = self.issuer().policy.call(&in_session(session, action, tool, approved, self.now()))?;
            let decision = permit.decision().clone();
            Ok((permit, decision))
        };
        let permitted = self.with_approval(session, action, tool, &[], call).await?;
        let approval = permitted.approval_id();
        let Permitted { permit, decision, approval: agreed } = permitted;
        let one_use = decision.obligations.one_use || terms.boundary == Boundary::ToolCall;
        let token = match wish.scheme {
            ProofScheme::Wpt => Some(self.token(&member, wish.token, target, uri, one_use).await?),
            // Whoever checks it knows nothing of one use, and nothing of this session.
            ProofScheme::Dpop { .. } if one_use => {
                let why = "cannot be DPOP where a token is good for one call: only a WIT can say that".to_owned();
                return Err(SessionError::Field { field: "scheme", why });
            }
            ProofScheme::Dpop { .. } => None,
        };
        let txn = if wish.txn.is_empty() { self.issuer().entropy.hex::<16>() } else { wish.txn.clone() };
        let call = Call { tool, effect, approval: approval.as_deref(), txn: &txn, arguments: wish.arguments_sha256 };
        let claims = claims(session, &call, token.as_ref().map(|token| token.scope.as_str()));
        self.spend(session, 0, 1).await?;
        self.use_up(agreed.as_ref()).await?;
        // Nothing waits after this.
        self.look_again(&member, &decision, agreed.as_ref())?;
        let now = self.now();
        let wit = token.as_ref().and_then(|token| token.wit.clone());
        let proof = match (wish.scheme, &wit) {
            (ProofScheme::Dpop { access_token, nonce }, _) => SessionProof::Dpop { access_token, nonce },
            (ProofScheme::Wpt, Some(wit)) => SessionProof::Wpt { wit, claims: &claims },
            (ProofScheme::Wpt, None) => return Err(SessionError::NoToken),
        };
        let proof = self.issuer().held.prove_in_session(permit, terms.id.as_str(), proof, &wish.target, now)?;
        session.proof_until(proof.expires_at);
        let event = super::record::proven(&member, &call, &wish.target, token.as_ref(), &proof, &decision);
        self.issuer().audit.before(event)?;
        self.stands(session).map_err(|(_, unusable)| SessionError::from(unusable))?;
        Ok(Proven { wit, session: session.clone(), proof, txn })
    }

    /// What a call does: what its caller says, and policy of its tool. A request does at least what its method does. Of a
    /// call inside one the method says nothing: but only a delegate is believed that there is one, because it reads what it
    /// forwards, and only of a POST with a proof that its verifier holds against the request.
    fn effect_of(&self, session: &Session, wish: &ProveWish<'_>, tool: ToolFacts<'_>, by_delegate: bool) -> Effect {
        let said = match tool.name.is_empty() {
            true => None,
            false => self.issuer().policy.effect_of(&Question::classify(agent(session.terms()), tool, self.now())),
        };
        if wish.rpc.is_empty() {
            return by_caller(wish).max(said.unwrap_or(Effect::Read));
        }
        // What the caller says makes it graver alone, where policy has a word.
        let inside = match tool.name.is_empty() {
            true => wish.effect.unwrap_or(Effect::Write),
            false => wish.effect.unwrap_or(Effect::Read).max(said.unwrap_or(Effect::Irreversible)),
        };
        let is_carrier = wish.target.method.as_str() == "POST" && matches!(wish.scheme, ProofScheme::Wpt);
        if by_delegate && is_carrier { inside } else { inside.max(by_caller(wish)) }
    }

    /// The token that goes with a proof of a request to `uri`: the one that was named, one that is there, or a new one.
    async fn token(
        &self,
        member: &Member<'_>,
        named: Option<&str>,
        target: &str,
        uri: &TargetUri,
        one_use: bool,
    ) -> Result<Token, SessionError> {
        let session = &member.session;
        let binding = member.binding();
        if let Some(id) = named {
            let is_its = |token: &Token| token.expires_at > self.now() && token.binding <= binding;
            let token = session.take_named(id).filter(is_its).ok_or(SessionError::NoToken)?;
            if !covers(&token.target, uri) {
                return Err(SessionError::Target(uri.as_str().to_owned()));
            }
            return if one_use && !token.one_use { Err(SessionError::NoToken) } else { Ok(token) };
        }
        if one_use {
            // One target per token: where the session may go anywhere, the token goes to this very place.
            let target = if target == "*" { uri.as_str() } else { target };
            return Ok(self.mint_wit(member, target, &[], For::OneProof).await?.1);
        }
        if let Some(token) = self.present(session, uri, binding) {
            return Ok(token);
        }
        let _turn = session.minting.lock().await;
        if let Some(token) = self.present(session, uri, binding) {
            return Ok(token);
        }
        let target = if target == "*" { uri.as_str() } else { target };
        Ok(self.mint_wit(member, target, &[], For::Proofs).await?.1)
    }

    /// A token that is there for any proof, and stands.
    fn present(&self, session: &Session, uri: &TargetUri, binding: u8) -> Option<Token> {
        // At the end of the session there is no longer one.
        let until = (self.now() + AT_LEAST).min(session.ends_at());
        let stands = |token: &Token| self.issuer().ledger.standing(&token.id) == Standing::Stands;
        session.tokens_for(uri, binding, until).into_iter().find(stands)
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

/// What a call does by what its caller says, and never less than its method.
fn by_caller(wish: &ProveWish<'_>) -> Effect {
    let least = Effect::of_method(wish.target.method.as_str());
    wish.effect.map_or(least, |effect| effect.max(least))
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
            // Whoever knows nothing of calls inside requests sees one that does at least what its method does.
            effect: call.effect.max(Effect::of_method(call.tool.method)).as_str().to_owned(),
            tool: some(call.tool.name),
            arguments_sha256: call.arguments.map(|digest| URL_SAFE_NO_PAD.encode(digest)),
            approval: call.approval.map(str::to_owned),
        },
    }
}
