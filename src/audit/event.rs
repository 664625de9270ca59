//! The closed set of events.
//!
//! An event carries ids, serials, digests and reasons: never a token, a key, a prompt, an argument or a result.

use time::OffsetDateTime;

use super::field::{Caller, events};

events! {
    /// What happened.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Event {
        /// An SVID was issued. Written before it leaves the agent.
        "svid_issued": SvidIssued {
            /// To whom.
            caller: Caller,
            /// For whom, where that is another.
            on_behalf_of: Option<Caller>,
            /// `x509`, `jwt` or `wit`.
            kind: &'static str,
            /// What its theft is worth: 0 bearer, 1 key in the workload, 2 and more key held by tether.
            binding: u8,
            /// The identity.
            spiffe_id: String,
            /// The registration entry it came from.
            entry: String,
            /// The certificate's serial number or the token's `jti`.
            serial: String,
            /// The audiences of a token.
            audience: Vec<String>,
            /// When it ends.
            not_after: OffsetDateTime,
        }
        /// A verifier was told that a token of this node does not stand.
        "token_refused": TokenRefused {
            /// The verifier.
            caller: Caller,
            /// Whom the token identifies.
            spiffe_id: String,
            /// Its `jti`.
            serial: String,
            /// Why: a stable label.
            reason: &'static str,
        }
        /// A key is held for a process, and a credential was issued for it.
        "key_held": KeyHeld {
            /// Who asked.
            caller: Caller,
            /// For whom, where that is another.
            on_behalf_of: Option<Caller>,
            /// `x509` or `wit`.
            kind: &'static str,
            /// The identity.
            spiffe_id: String,
            /// The registration entry it came from.
            entry: String,
            /// The certificate's serial number or the token's `jti`.
            serial: String,
            /// The binding level.
            binding: u8,
            /// When it ends.
            not_after: OffsetDateTime,
        }
        /// A held key signed, outside of any session.
        "key_used": KeyUsed {
            /// Who asked.
            caller: Caller,
            /// For whom, where that is another.
            on_behalf_of: Option<Caller>,
            /// `wpt`, `dpop` or `tls`.
            kind: &'static str,
            /// The identity.
            spiffe_id: String,
            /// The certificate's serial number or the token's `jti`.
            serial: String,
            /// Method and URI of the request that is proven.
            request: Option<String>,
        }
        /// A tool asked about a request, and its caller is who it says.
        "proof_accepted": ProofAccepted {
            /// Who asked.
            caller: Caller,
            /// Who sent the request.
            spiffe_id: String,
            /// Method and URI.
            request: String,
        }
        /// A tool asked about a request, and its caller is not who it says.
        "proof_refused": ProofRefused {
            /// Who asked.
            caller: Caller,
            /// Why not: a stable label.
            reason: &'static str,
            /// Why not, for a person.
            detail: String,
            /// Method and URI.
            request: String,
        }
        /// A caller was refused an SVID, a bundle, or what it wanted of a session.
        "refused": Refused {
            /// Who.
            caller: Caller,
            /// Why: a stable label.
            reason: &'static str,
            /// Why, for a person.
            detail: String,
        }
        /// Issued credentials ended before their time.
        "credentials_ended": CredentialsEnded {
            /// What ended: a process, a unit, an entry, an authority.
            what: String,
            /// Why: a stable label.
            reason: &'static str,
            /// How many credentials.
            count: usize,
        }
        /// A unit that systemd starts got a credential. Written before it leaves the agent. Who has the file has the key.
        "credential_given": CredentialGiven {
            /// The process of systemd's that asked.
            caller: Caller,
            /// The unit.
            unit: String,
            /// Which start of it.
            invocation: String,
            /// The credential's name.
            credential: String,
            /// The identity.
            spiffe_id: String,
            /// The registration entry it came from.
            entry: String,
            /// The serial number of the certificate it goes with, or the token's `jti`.
            serial: String,
        }
        /// A connection was refused or cut.
        "connection_refused": ConnectionRefused {
            /// Who.
            caller: Caller,
            /// Why: a stable label.
            reason: &'static str,
            /// Why, for a person.
            detail: String,
        }
        /// More refusals of one user for one reason than are written one by one: these were counted. Written a minute after
        /// the first of them, or when the agent stops.
        "refusals_folded": RefusalsFolded {
            /// Who, with the process that was the first. Absent where so many users are refused that the others count as one.
            caller: Option<Caller>,
            /// The event it stands for; absent with the caller.
            of: &'static str,
            /// Why, as in that event; absent with the caller.
            reason: String,
            /// How many, beside those that have a record of their own.
            count: u64,
            /// When the first of them was.
            since: OffsetDateTime,
            /// When the last of them was.
            until: OffsetDateTime,
        }
        /// An authority changed its state.
        "authority_changed": AuthorityChanged {
            /// Which.
            id: String,
            /// What it signs.
            kind: &'static str,
            /// `prepared`, `activated`, `removed` or `revoked`.
            change: &'static str,
        }
        /// The registration entries changed.
        "entries_changed": EntriesChanged {
            /// How many there are now.
            count: usize,
            /// The new generation.
            generation: u64,
        }
        /// An entry source has mistakes; nothing changed.
        "entries_refused": EntriesRefused {
            /// Each mistake with file, line and column.
            mistakes: Vec<String>,
        }
        /// The policies changed.
        "policy_changed": PolicyChanged {
            /// SHA-256 of the new set, in hex: what decisions name as `set`.
            set: String,
            /// How many policies it has.
            count: usize,
        }
        /// A set of policies has mistakes; the one before stays in force.
        "policy_refused": PolicyRefused {
            /// Each mistake with file, line and column.
            mistakes: Vec<String>,
        }
        /// An operator used the admin API to change something.
        "admin": Admin {
            /// Who.
            caller: Caller,
            /// What: the method.
            action: &'static str,
            /// On what.
            subject: String,
        }
        /// A task begins. Written before its id is known to anybody.
        "session_started": SessionStarted {
            /// Who asked.
            caller: Caller,
            /// The session.
            session: String,
            /// The session above it.
            parent: Option<String>,
            /// The ended session it goes on with.
            resumes: Option<String>,
            /// The agent that acts.
            spiffe_id: String,
            /// The registration entry that gives the identity.
            entry: String,
            /// The person it acts for: `alice@NODE`, or `ISSUER#SUBJECT`.
            user: Option<String>,
            /// What for.
            purpose: String,
            /// SHA-256 of the task in words, in hex.
            task_sha256: String,
            /// Where to.
            targets: Vec<String>,
            /// What of.
            scopes: Vec<String>,
            /// `tool_call`, `request` or `task`.
            boundary: &'static str,
            /// Who may act: `process`, `cgroup` or `tree`.
            scope: &'static str,
            /// The very process or cgroup, as the ledger names it.
            tie: String,
            /// The binding level of its proofs.
            binding: u8,
            /// How many tokens may be minted; 0 without limit.
            max_tokens: u32,
            /// How many calls may be proven; 0 without limit.
            max_calls: u32,
            /// What was measured of what was launched: `launch:*` selectors.
            launched: Vec<String>,
            /// The agents behind it, the nearest first.
            delegated_by: Vec<String>,
            /// When it ends at the latest.
            not_after: OffsetDateTime,
            /// The approval it waits for, or was allowed by.
            approval: Option<String>,
            /// The policies that decided.
            policies: Vec<String>,
            /// SHA-256 of the set of policies that decided, in hex.
            set: String,
            /// `active` or `pending_approval`.
            state: &'static str,
        }
        /// A session that waited for an approval may be used.
        "session_activated": SessionActivated {
            /// The session.
            session: String,
            /// The approval.
            approval: Option<String>,
        }
        /// Nothing is signed for a session, and nothing of it stands, until it is resumed.
        "session_suspended": SessionSuspended {
            /// The session.
            session: String,
            /// By whom: `uid N`, or the rule of the agent's.
            by: String,
        }
        /// A suspended session may be used again.
        "session_resumed": SessionResumed {
            /// The session.
            session: String,
            /// By whom.
            by: String,
        }
        /// A session ended, for good.
        "session_ended": SessionEnded {
            /// The session.
            session: String,
            /// Why: a stable label.
            reason: &'static str,
            /// By whom, where somebody asked for it.
            by: Option<String>,
            /// The sessions below it that ended with it; each has a record of its own.
            ended: Vec<String>,
            /// How many private keys were wiped.
            keys_wiped: u32,
            /// The ids of the credentials that were revoked.
            revoked: Vec<String>,
        }
        /// A token of a session was minted. Written before it leaves the agent.
        "token_minted": TokenMinted {
            /// Who asked.
            caller: Caller,
            /// For whom, where that is another.
            on_behalf_of: Option<Caller>,
            /// The session.
            session: String,
            /// The agent.
            spiffe_id: String,
            /// The person it acts for.
            user: Option<String>,
            /// `wit` or `jwt`.
            kind: &'static str,
            /// Its `jti`.
            serial: String,
            /// Where it is good.
            target: String,
            /// What of.
            scopes: Vec<String>,
            /// Whether it is good for one call.
            one_use: bool,
            /// What its theft is worth.
            binding: u8,
            /// When it ends.
            not_after: OffsetDateTime,
            /// The approval that allowed it.
            approval: Option<String>,
            /// The policies that decided.
            policies: Vec<String>,
            /// SHA-256 of the set of policies that decided, in hex.
            set: String,
        }
        /// A request was proven in a session. Written before the proof leaves the agent.
        "proof_made": ProofMade {
            /// Who asked.
            caller: Caller,
            /// For whom, where that is another.
            on_behalf_of: Option<Caller>,
            /// The session.
            session: String,
            /// The transaction.
            txn: String,
            /// The agent.
            spiffe_id: String,
            /// The person it acts for.
            user: Option<String>,
            /// The `jti` of the token it goes with.
            serial: String,
            /// The `jti` of the proof.
            proof: String,
            /// The request's method.
            method: String,
            /// The request's URI, without query and fragment.
            uri: String,
            /// The tool's name behind the URI.
            tool: String,
            /// SHA-256 of the tool's arguments, in hex.
            arguments_sha256: String,
            /// `read`, `write` or `irreversible`.
            effect: &'static str,
            /// The approval that allowed it.
            approval: Option<String>,
            /// The policies that decided.
            policies: Vec<String>,
            /// SHA-256 of the set of policies that decided, in hex.
            set: String,
        }
        /// A decision that was not a plain yes: what was refused, or waits for an approval. A yes is in the record of what
        /// it allowed.
        "decided": Decided {
            /// Who asked.
            caller: Option<Caller>,
            /// The session.
            session: Option<String>,
            /// The transaction.
            txn: String,
            /// `issue`, `start`, `delegate`, `mint` or `call`.
            action: &'static str,
            /// The agent.
            spiffe_id: String,
            /// The person it acts for.
            user: Option<String>,
            /// Where to: the target, URI or audience.
            target: String,
            /// The tool's name.
            tool: String,
            /// SHA-256 of the tool's arguments, in hex.
            arguments_sha256: String,
            /// `read`, `write` or `irreversible`, of a call.
            effect: Option<&'static str>,
            /// Whether it was allowed in the end.
            allowed: bool,
            /// Why not: a stable label, such as `policy_denied` or `step_up`.
            reason: String,
            /// Whether the user's proof still stood; absent when there is no user, or it was not asked.
            user_ok: Option<bool>,
            /// Whether the agent was who it must be, alive and entitled; absent when it was not asked.
            agent_ok: Option<bool>,
            /// Whether policy allowed it; absent when it was not asked.
            policy_ok: Option<bool>,
            /// The approval it waits for.
            approval: Option<String>,
            /// The policies that decided.
            policies: Vec<String>,
            /// Policies that could not be evaluated, with why.
            errors: Vec<String>,
            /// SHA-256 of the set of policies that decided, in hex.
            set: String,
        }
        /// A tool asked whether a request that was made in a session is good.
        "call_checked": CallChecked {
            /// The tool.
            caller: Caller,
            /// The session; absent when the request named none that can be believed.
            session: Option<String>,
            /// The transaction.
            txn: String,
            /// Who sent the request.
            spiffe_id: String,
            /// The person it acts for.
            user: Option<String>,
            /// The tool's name, as the tool says.
            tool: String,
            /// The method of the call inside the request (JSON-RPC); empty for the request itself.
            rpc: String,
            /// Method and URI.
            request: String,
            /// The `jti` of the token.
            serial: String,
            /// The `jti` of the proof.
            proof: String,
            /// `read`, `write` or `irreversible`.
            effect: Option<&'static str>,
            /// Whether it is good.
            active: bool,
            /// Why not: a stable label.
            reason: String,
            /// Whether the user's proof still stands; absent when there is no user, or it was not asked.
            user_ok: Option<bool>,
            /// Whether the agent is who it must be, alive and entitled; absent when it was not asked.
            agent_ok: Option<bool>,
            /// Whether policy allows it; absent when it was not asked.
            policy_ok: Option<bool>,
            /// The policies that decided.
            policies: Vec<String>,
            /// SHA-256 of the set of policies that decided, in hex.
            set: String,
        }
        /// A tool says what became of a call that it had checked.
        "call_reported": CallReported {
            /// The tool.
            caller: Caller,
            /// The session.
            session: String,
            /// The transaction.
            txn: String,
            /// `done`, `failed` or `refused`.
            outcome: &'static str,
            /// One line of the tool's.
            note: String,
            /// SHA-256 of the result, in hex.
            result_sha256: String,
        }
        /// Something waits for a person's word.
        "approval_requested": ApprovalRequested {
            /// The approval.
            approval: String,
            /// The session.
            session: String,
            /// The transaction.
            txn: String,
            /// The agent.
            spiffe_id: String,
            /// The person it acts for.
            user: Option<String>,
            /// What is to be allowed: `start`, `delegate`, `mint` or `call`.
            action: &'static str,
            /// Where to.
            target: String,
            /// The request's method.
            method: String,
            /// The tool's name.
            tool: String,
            /// SHA-256 of the tool's arguments, in hex.
            arguments_sha256: String,
            /// What the policy says to whoever approves.
            why: String,
            /// The policies that want it.
            policies: Vec<String>,
            /// Until when it waits.
            expires_at: Option<OffsetDateTime>,
        }
        /// A person decided. On disk before it has any effect.
        "approval_decided": ApprovalDecided {
            /// Who.
            caller: Option<Caller>,
            /// The approval.
            approval: String,
            /// The session.
            session: String,
            /// `granted`, `denied` or `withdrawn`.
            verdict: &'static str,
            /// By whom: `uid N`.
            by: String,
            /// How long it holds.
            expires_at: Option<OffsetDateTime>,
            /// For how many uses; 0 without limit.
            uses: u32,
            /// What the approver noted.
            note: String,
        }
        /// An approval was used for what it was given for.
        "approval_used": ApprovalUsed {
            /// The approval.
            approval: String,
            /// The session.
            session: String,
            /// The transaction.
            txn: String,
            /// How many uses are left; absent without limit.
            uses_left: Option<u32>,
        }
        /// An approval is over.
        "approval_ended": ApprovalEnded {
            /// The approval.
            approval: String,
            /// The session.
            session: String,
            /// Why: `used`, `expired`, `withdrawn`, `session_ended`.
            reason: &'static str,
        }
        /// A launcher started a command for a session, and it was measured.
        "launched": Launched {
            /// The launcher.
            caller: Caller,
            /// The session.
            session: String,
            /// What was measured: `launch:*` selectors.
            selectors: Vec<String>,
        }
        /// Somebody tried what an honest caller does not: a scope or target beyond its own, a proof again, a session of
        /// others.
        "suspicious_use": SuspiciousUse {
            /// Who.
            caller: Caller,
            /// The session.
            session: Option<String>,
            /// The transaction.
            txn: String,
            /// What: one text for each kind, such as `a target outside the session`.
            what: &'static str,
            /// What, for a person.
            detail: String,
        }
        /// The agent started.
        "agent_started": AgentStarted {
            /// The version of tether.
            release: String,
            /// The trust domain.
            trust_domain: String,
        }
        /// The agent was told to stop, and has stopped issuing.
        "agent_stopped": AgentStopped {
        }
        /// The first record of a chain.
        "audit_began": AuditBegan {
            /// Why a new chain begins.
            why: String,
        }
        /// The store or the ledger was damaged, and was made usable at the start.
        "state_repaired": StateRepaired {
            /// `store` or `ledger`.
            part: &'static str,
            /// What was found, what was done, and what that means.
            what: String,
        }
        /// What was found at the start was not what was left: a record that was not written whole was cut off, or records
        /// are missing or damaged.
        "audit_repaired": AuditRepaired {
            /// The file.
            file: String,
            /// What was found, and what was done.
            what: String,
            /// How many bytes were cut off.
            cut: u64,
            /// SHA-256 of these bytes, in hex.
            cut_sha256: String,
        }
        /// Records could be written again after they could not.
        "audit_interrupted": AuditInterrupted {
            /// Since when they could not.
            since: OffsetDateTime,
            /// How many records of what did happen are lost.
            lost: u64,
            /// Why they could not be written.
            why: String,
        }
        /// The oldest files were removed, as `[audit]` says. Written before they are.
        "audit_retired": AuditRetired {
            /// How many files.
            files: usize,
            /// The last record in them.
            through: u64,
            /// Its `hash`.
            through_hash: String,
        }
    }
}
