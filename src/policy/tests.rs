use std::path::Path;

use time::macros::datetime;

use super::*;
use crate::user::{User, UserProof};

/// Everything a question borrows.
pub(super) struct Case {
    pub(super) agent: SpiffeId,
    pub(super) owner: &'static str,
    pub(super) user: Option<User>,
    pub(super) purpose: &'static str,
    pub(super) targets: Vec<String>,
    pub(super) scopes: Vec<String>,
    pub(super) launched: Vec<String>,
    pub(super) audience: Vec<String>,
    pub(super) kind: &'static str,
    pub(super) uri: String,
    pub(super) method: &'static str,
    pub(super) tool: &'static str,
    pub(super) rpc: &'static str,
    pub(super) proof: bool,
    pub(super) binding: u8,
    pub(super) depth: u32,
    pub(super) calls: u32,
    pub(super) approved: bool,
    pub(super) now: OffsetDateTime,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            agent: SpiffeId::parse("spiffe://example.org/agent/mail").unwrap(),
            owner: "team@example.org",
            user: Some(alice()),
            purpose: "answer-mail",
            targets: vec!["https://mail.example.com/".to_owned()],
            scopes: vec!["mail.read".to_owned()],
            launched: vec!["launch:sha256:abc".to_owned()],
            audience: vec!["pay".to_owned()],
            kind: "x509",
            uri: "https://mail.example.com/inbox".to_owned(),
            method: "GET",
            tool: "",
            rpc: "",
            proof: true,
            binding: 3,
            depth: 0,
            calls: 1,
            approved: false,
            now: datetime!(2026-03-01 9:30 UTC), // a Sunday
        }
    }
}

pub(super) fn alice() -> User {
    User {
        issuer: "https://login.example.com".to_owned(),
        subject: "alice".to_owned(),
        proof: UserProof::Token {
            expires_at: datetime!(2026-03-01 18:00 UTC),
            session: None,
            context: Some("mfa".to_owned()),
        },
    }
}

impl Case {
    pub(super) fn at(uri: &str) -> Self {
        Self { uri: uri.to_owned(), ..Self::default() }
    }

    pub(super) fn ask<T>(&self, action: Action, answer: impl FnOnce(&Question<'_>) -> T) -> T {
        let session = SessionFacts {
            id: "node.0123",
            parent: None,
            depth: self.depth,
            purpose: self.purpose,
            targets: &self.targets,
            scopes: &self.scopes,
            boundary: "task",
            binding: self.binding,
            lifetime: Duration::from_secs(900),
            tokens: 1,
            calls: self.calls,
            max_tokens: 10,
            max_calls: 20,
            launched: &self.launched,
        };
        let tool = ToolFacts {
            uri: &self.uri,
            method: if action == Action::Mint { "" } else { self.method },
            name: self.tool,
            rpc: self.rpc,
            arguments_sha256: "",
            kind: "wit",
        };
        let is_issue = action == Action::Issue;
        let in_session = matches!(action, Action::Start | Action::Delegate | Action::Mint | Action::Call(_));
        let at_tool = matches!(action, Action::Mint | Action::Call(_) | Action::Reach(_) | Action::Classify);
        let reach = ReachFacts { proof: self.proof, binding: self.binding };
        answer(&Question {
            action,
            agent: AgentFacts { spiffe_id: &self.agent, entry: "mail", owner: self.owner },
            user: self.user.as_ref().filter(|_| in_session),
            session: in_session.then_some(session),
            issue: is_issue.then_some(IssueFacts { kind: self.kind, audience: &self.audience, binding: self.binding }),
            tool: at_tool.then_some(tool),
            reach: matches!(action, Action::Reach(_)).then_some(reach),
            approved: self.approved,
            now: self.now,
        })
    }
}

pub(super) const READ: Action = Action::Call(Effect::Read);
pub(super) const WRITE: Action = Action::Call(Effect::Write);
pub(super) const IRREVERSIBLE: Action = Action::Call(Effect::Irreversible);
pub(super) const REACH: Action = Action::Reach(Effect::Read);
pub(super) const EVERY_ACTION: [Action; 9] =
    [Action::Issue, Action::Start, Action::Delegate, Action::Mint, READ, WRITE, IRREVERSIBLE, REACH, Action::Classify];

/// The set of 00-issue and these policies.
pub(super) fn set(text: &str) -> PolicySet {
    let file = PolicyFile { path: Path::new("/p/test.cedar").into(), text: text.to_owned() };
    compile(BuiltIn::Issue, &[file]).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).set
}

fn decide(text: &str, case: &Case, action: Action) -> Decision {
    case.ask(action, |question| set(text).decide(question))
}

#[test]
fn without_a_file_issuing_is_permitted_and_nothing_else() {
    let permitted: Vec<_> =
        EVERY_ACTION.into_iter().filter(|action| decide("", &Case::default(), *action).allowed).collect();
    assert_eq!(permitted, [Action::Issue]);
    let issued = decide("", &Case::default(), Action::Issue);
    assert_eq!(*issued.policies, ["00-issue".to_owned()]);
}

#[test]
fn the_policy_of_a_dev_agent_permits_everything() {
    let policy = Policy::new(LIFETIMES).with_policies(Policies::built_in(BuiltIn::Dev));
    for action in EVERY_ACTION {
        let allowed = Case::default().ask(action, |question| policy.decide(question)).allowed;
        // To classify is no permission.
        assert_eq!(allowed, action != Action::Classify, "{action:?}");
    }
}

const LIFETIMES: Lifetimes = Lifetimes { x509: Duration::from_secs(900), jwt: Duration::from_secs(300) };

/// A condition of a policy on everything an action may be asked about, whether it holds for [`Case::default`].
#[test]
fn policies_see_every_fact_of_a_question() {
    let calls = [READ, WRITE, IRREVERSIBLE].as_slice();
    let session = [Action::Start, Action::Delegate, Action::Mint, READ, WRITE, IRREVERSIBLE].as_slice();
    let binding = &EVERY_ACTION[..8];
    let rows: &[(&[Action], &str, bool)] = &[
        (&EVERY_ACTION, r#"principal == Agent::"spiffe://example.org/agent/mail""#, true),
        (&EVERY_ACTION, r#"principal == Agent::"spiffe://example.org/agent""#, false),
        (&EVERY_ACTION, r#"principal in AgentPath::"spiffe://example.org/agent""#, true),
        (&EVERY_ACTION, r#"principal in AgentPath::"spiffe://example.org""#, true),
        (&EVERY_ACTION, r#"principal in AgentPath::"spiffe://example.org/agent/mail""#, true),
        (&EVERY_ACTION, r#"principal in AgentPath::"spiffe://example.org/ag""#, false),
        (&EVERY_ACTION, r#"principal in AgentPath::"spiffe://example.com""#, false),
        (&EVERY_ACTION, r#"principal.trust_domain == "example.org" && principal.path == "/agent/mail""#, true),
        (&EVERY_ACTION, r#"principal.entry == "mail" && principal.owner == "team@example.org""#, true),
        (&EVERY_ACTION, "context.time.hour == 9 && context.time.weekday == 7", true),
        (&EVERY_ACTION, "context.time.unix == 1772357400", true),
        (binding, "context.binding >= 3", true),
        (&[REACH], r#"context.proof && context.effect == "read""#, true),
        (&[REACH, Action::Classify], r#"resource in Host::"mail.example.com" && context.method == "GET""#, true),
        (
            &[REACH, Action::Classify],
            r#"context.rpc == "" && context.tool == "" && context.arguments_sha256 == """#,
            true,
        ),
        (&[Action::Issue], r#"resource == Credential::"x509" && context.audience.contains("pay")"#, true),
        (&[Action::Issue], r#"resource == Credential::"jwt""#, false),
        (session, r#"context.purpose == "answer-mail" && context.session.purpose == "answer-mail""#, true),
        (session, "context.approved", false),
        (session, "context.budget == {tokens: 1, calls: 1, max_tokens: 10, max_calls: 20}", true),
        (session, r#"context has user && context.user.subject == "alice" && context.user.kind == "oidc""#, true),
        (session, r#"context has user && context.user has acr && context.user.acr == "mfa""#, true),
        (session, r#"context has user && context.user == User::"https://login.example.com#alice""#, true),
        (session, r#"context.session has user && context.session.user.issuer == "https://login.example.com""#, true),
        (session, "context.session.agent == principal", true),
        (session, r#"context.session.targets.contains("https://mail.example.com/")"#, true),
        (session, r#"context.session.scopes == ["mail.read"] && context.session.boundary == "task""#, true),
        (session, r#"context.session.launched.contains("launch:sha256:abc")"#, true),
        (session, "context.session.depth == 0 && context.session.lifetime_seconds == 900", true),
        (&[Action::Start, Action::Delegate], "resource == context.session", true),
        (&[Action::Mint], r#"context.kind == "wit""#, true),
        (calls, r#"resource == Tool::"https://mail.example.com/inbox""#, true),
        (calls, r#"resource in Host::"mail.example.com""#, true),
        (calls, r#"resource in Host::"example.com""#, false),
        (calls, r#"resource in Prefix::"https://mail.example.com/""#, true),
        (calls, r#"resource in Prefix::"https://mail.example.com/inbox""#, true),
        (calls, r#"resource in Prefix::"https://mail.example.com/in""#, false),
        (calls, r#"resource in Prefix::"https://mail.example.com:8443/""#, false),
        (calls, r#"resource.scheme == "https" && resource.host == "mail.example.com""#, true),
        (calls, r#"resource.port == 443 && resource.path == "/inbox" && resource.path like "/in*""#, true),
        (calls, r#"context.method == "GET" && context.tool == "" && context.arguments_sha256 == """#, true),
        (calls, r#"context.rpc == """#, true),
        (&[READ], r#"context.effect == "read""#, true),
        (&[WRITE], r#"context.effect == "read""#, false),
        (calls, r#"action in Action::"call""#, true),
    ];
    let case = Case::default();
    for (actions, condition, holds) in rows {
        for action in *actions {
            let word = &words::ACTION_WORDS[words::index_of(*action)].uid;
            // Forbidding tells apart what does not hold and what cannot be evaluated.
            let effect = if *action == Action::Classify { "@effect(\"read\") " } else { "" };
            let text = format!("{effect}permit(principal, action == {word}, resource) when {{ {condition} }};");
            let permit = decide(&text, &case, *action);
            assert!(permit.errors.is_empty(), "{action:?} {condition}: {:?}", permit.errors);
            let by_it = permit.policies.iter().any(|id| id.starts_with("test.cedar"));
            assert_eq!(by_it, *holds, "{action:?} {condition}");
        }
    }
}

#[test]
fn what_is_asked_fits_the_schema() {
    let local = User {
        issuer: "spiffe://example.org/tether/agent/0".to_owned(),
        subject: "bob".to_owned(),
        proof: UserProof::Local { uid: 1000, node: "0".to_owned(), login_session: None },
    };
    let cases = [
        Case::default(),
        Case { user: None, ..Case::default() },
        Case { user: Some(local), ..Case::default() },
        Case::at("https://[::1]:8443/x"),
        Case::at("pay"),
    ];
    for case in &cases {
        for action in EVERY_ACTION {
            let asked = case.ask(action, |question| facts::Asked::new(question, set("").mentioned())).unwrap();
            asked.check().unwrap_or_else(|why| panic!("{action:?}: {why}"));
        }
    }
}

#[test]
fn a_policy_that_names_one_entity_applies_to_it_alone() {
    let anchors = [
        r#"principal == Agent::"spiffe://example.org/agent/mail", action, resource"#,
        r#"principal in AgentPath::"spiffe://example.org/agent", action in Action::"call", resource"#,
        r#"principal, action == Action::"read", resource == Tool::"https://mail.example.com/inbox""#,
        r#"principal, action == Action::"read", resource in Host::"mail.example.com""#,
        r#"principal, action == Action::"read", resource in Prefix::"https://mail.example.com/""#,
        r#"principal is Agent in AgentPath::"spiffe://example.org", action == Action::"read", resource is Tool"#,
        r#"principal, action in [Action::"read", Action::"write"], resource is Tool in Host::"mail.example.com""#,
    ];
    let other = SpiffeId::parse("spiffe://example.net/agent/mail").unwrap();
    for anchor in anchors {
        let permit = format!("permit({anchor});");
        assert!(decide(&permit, &Case::default(), READ).allowed, "{anchor}");
        let elsewhere = Case { agent: other.clone(), ..Case::at("https://files.example.com/") };
        assert!(!decide(&permit, &elsewhere, READ).allowed, "{anchor}");
        let forbid = format!("permit(principal, action, resource);\nforbid({anchor});");
        assert!(!decide(&forbid, &Case::default(), READ).allowed, "{anchor}");
        assert!(decide(&forbid, &elsewhere, READ).allowed, "{anchor}");
    }
}

#[test]
fn forbid_wins_and_says_which() {
    let text = r#"
        @id("all") permit(principal, action, resource);
        @id("no-mail") forbid(principal, action in Action::"call", resource in Host::"mail.example.com");
        @id("not-now") forbid(principal, action == Action::"read", resource) when { context.time.hour < 12 };
    "#;
    let read = decide(text, &Case::default(), READ);
    assert_eq!((read.allowed, read.policies.join(" ")), (false, "no-mail not-now".to_owned()));
    let write = decide(text, &Case::at("https://files.example.com/"), WRITE);
    assert_eq!((write.allowed, write.policies.join(" ")), (true, "all".to_owned()));
}

#[test]
fn what_cannot_be_evaluated_permits_nothing_and_as_a_forbid_refuses() {
    // The largest number and one more.
    let overflow = "context.budget.tokens + 9223372036854775807 > 0";
    let permit =
        format!(r#"@id("broken") permit(principal, action == Action::"read", resource) when {{ {overflow} }};"#);
    let alone = decide(&permit, &Case::default(), READ);
    assert!(!alone.allowed && alone.errors[0].starts_with("policy `broken`: "), "{:?}", alone.errors);
    let beside = decide(&format!("{permit} permit(principal, action, resource);"), &Case::default(), READ);
    assert!(beside.allowed && beside.errors.len() == 1);
    for obligation in ["@step_up(\"a person\")", "@one_use", "@redact(\"purpose\")"] {
        let text = format!("{obligation} {permit} permit(principal, action, resource);");
        let lost = decide(&text, &Case::default(), READ);
        assert!(!lost.allowed && lost.errors.len() == 1, "{obligation}");
    }
    let forbid = format!("permit(principal, action, resource); {}", permit.replace("permit", "forbid"));
    let forbidden = decide(&forbid, &Case::default(), READ);
    assert!(!forbidden.allowed && forbidden.errors.len() == 1);
}

#[test]
fn obligations_are_those_of_every_permit_that_holds() {
    let text = r#"
        @id("a") @step_up("sends mail") @redact("purpose") @stale("2m")
        permit(principal, action == Action::"write", resource);
        @id("b") @one_use @redact("user, target") @stale("30s")
        permit(principal, action in Action::"call", resource);
        @id("c") @step_up("never asked") permit(principal, action == Action::"write", resource) when { context.binding > 7 };
    "#;
    let asked = decide(text, &Case::default(), WRITE);
    assert!(!asked.allowed);
    let obligations = &asked.obligations;
    assert_eq!(obligations.step_up.as_deref(), Some("sends mail"));
    assert!(obligations.one_use);
    assert_eq!(obligations.redact.iter().map(String::as_str).collect::<Vec<_>>(), ["purpose", "target", "user"]);
    assert_eq!(obligations.stale, Some(Duration::from_secs(30)));
    assert!(decide(text, &Case { approved: true, ..Case::default() }, WRITE).allowed);
    let read = decide(text, &Case::default(), READ);
    assert_eq!((read.allowed, read.obligations.step_up), (true, None));
}

#[test]
fn permissions_are_given_for_what_was_asked_and_nothing_else() {
    let dev = Policy::new(LIFETIMES).with_policies(Policies::built_in(BuiltIn::Dev));
    let none = Policy::new(LIFETIMES);
    for action in EVERY_ACTION {
        let case = Case::default();
        let given = |policy: &Policy| {
            case.ask(action, |question| {
                (
                    policy.start_session(question).is_ok(),
                    policy.mint_token(question).is_ok(),
                    policy.call(question).is_ok(),
                    policy.reach(question).is_ok(),
                )
            })
        };
        let expected = match action {
            Action::Issue | Action::Classify => (false, false, false, false),
            Action::Start | Action::Delegate => (true, false, false, false),
            Action::Mint => (false, true, false, false),
            Action::Call(_) => (false, false, true, false),
            Action::Reach(_) => (false, false, false, true),
        };
        assert_eq!(given(&dev), expected, "{action:?}");
        assert_eq!(given(&none), (false, false, false, false), "{action:?}");
    }
}

#[test]
fn what_a_call_does_is_the_gravest_that_any_policy_says_of_it_and_permits_nothing() {
    let text = r#"
        @id("search") @effect("read") permit(principal, action == Action::"classify", resource)
          when { ["search", "wipe"].contains(context.tool) };
        @id("wipe") @effect("irreversible") permit(principal, action == Action::"classify", resource in Host::"mail.example.com")
          when { context.tool == "wipe" };"#;
    let policy = Policy::new(LIFETIMES).with_policies(Policies::of(set(text)));
    let said = |tool| Case { tool, ..Case::default() }.ask(Action::Classify, |question| policy.effect_of(question));
    assert_eq!(said("search"), Some(Effect::Read));
    assert_eq!(said("wipe"), Some(Effect::Irreversible));
    assert_eq!(said("other"), None);
    for action in [READ, REACH] {
        let case = Case { tool: "search", ..Case::default() };
        assert!(!case.ask(action, |question| policy.decide(question)).allowed, "{action:?}");
    }
}

#[test]
fn a_call_outside_sessions_takes_a_permit_of_its_own() {
    let in_session = r#"permit(principal, action in Action::"call", resource);"#;
    assert!(!decide(in_session, &Case::default(), REACH).allowed);
    let proven = r#"permit(principal, action == Action::"reach", resource) when { context.proof };"#;
    assert!(decide(proven, &Case::default(), REACH).allowed);
    assert!(!decide(proven, &Case { proof: false, ..Case::default() }, REACH).allowed);
    assert!(!decide(proven, &Case::default(), READ).allowed);
}

#[test]
fn a_denial_says_what_to_do() {
    let denied = |text: &str, action: Action| {
        let policies = Policies::of(set(text));
        let policy = Policy::new(LIFETIMES).with_policies(policies);
        Case::default().ask(action, |question| match action {
            Action::Start => policy.start_session(question).map(drop),
            _ => policy.call(question).map(drop),
        })
    };
    let rows = [
        (
            "",
            Action::Start,
            "policy_denied",
            "no policy permits `start` for `spiffe://example.org/agent/mail` and the purpose `answer-mail`: add a permit \
             to a `.cedar` file in `policies_dir`; `tether policy explain` shows why",
        ),
        (
            r#"@id("f") forbid(principal, action, resource);"#,
            READ,
            "policy_denied",
            "policy `f` forbids `call` for `spiffe://example.org/agent/mail` at `GET https://mail.example.com/inbox`: \
             `tether policy explain` shows why",
        ),
        (
            r#"@id("s") @step_up("reads mail") permit(principal, action in Action::"call", resource);"#,
            READ,
            "step_up",
            "policy wants a person to agree to `call` first: reads mail (s)",
        ),
    ];
    for (text, action, label, message) in rows {
        let denial = denied(text, action).unwrap_err();
        assert_eq!((denial.as_str(), denial.to_string().as_str()), (label, message));
    }
}

#[test]
fn the_smallest_cap_of_a_tokens_audiences_counts_and_the_star_stands_for_those_without_one() {
    type Caps<'a> = &'a [(&'a str, u64)];
    let seconds = |caps: Caps<'_>| -> AudienceCaps {
        caps.iter().map(|(audience, seconds)| ((*audience).to_owned(), Duration::from_secs(*seconds))).collect()
    };
    let some = [("pay", 30), ("mail", 120)];
    let table: &[(Caps<'_>, &[&str], Option<u64>)] = &[
        (&[], &["pay"], None),
        (&some, &["other"], None),
        (&some, &["pay"], Some(30)),
        (&some, &["pay/"], None),
        (&some, &["mail", "pay"], Some(30)),
        (&some, &["mail", "other"], Some(120)),
        (&[("*", 60), ("mail", 120)], &["other"], Some(60)),
        (&[("*", 60), ("mail", 120)], &["mail"], Some(120)),
        (&[("*", 60), ("mail", 120)], &["mail", "other"], Some(60)),
    ];
    for (caps, audience, expected) in table {
        let audience: Vec<String> = audience.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(seconds(caps).of(&audience), expected.map(Duration::from_secs), "{caps:?} {audience:?}");
    }
}
