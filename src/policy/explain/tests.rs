use super::*;
use crate::policy::tests::{Case, READ, WRITE, set};

const POLICIES: &str = r#"
@id("start") permit(principal, action in [Action::"start", Action::"delegate"], resource);
@id("other") permit(principal in AgentPath::"spiffe://example.org/batch", action == Action::"read", resource);
@id("files") permit(principal, action in Action::"call", resource is Tool in Host::"files.example.com");
@id("tool") permit(principal, action in Action::"call", resource == Tool::"https://mail.example.com/");
@id("night") permit(principal, action == Action::"read", resource)
  when { context.purpose == "answer-mail" && (context.time.hour < 6 || context.time.hour > 20) && context.binding > 2 };
@id("unless") permit(principal, action == Action::"read", resource) unless { context.time.weekday > 5 };
@id("broken") permit(principal, action == Action::"read", resource)
  when { context.budget.calls + 9223372036854775807 > 0 };
@id("read") permit(principal, action == Action::"read", resource);
@id("stop") forbid(principal, action == Action::"write", resource) when { context has user };
"#;

#[test]
fn of_every_policy_the_first_part_that_does_not_hold_is_named() {
    let explained = Case::default().ask(READ, |question| explain(&set(POLICIES), question));
    let found: Vec<_> = explained.policies.iter().map(|one| (&*one.id, one.verdict, &*one.detail)).collect();
    let expected = [
        ("00-issue", "action", "it wants action == Action::\"issue\""),
        ("start", "action", "it wants action in [Action::\"start\", Action::\"delegate\"]"),
        ("other", "principal", "it wants principal in AgentPath::\"spiffe://example.org/batch\""),
        ("files", "resource", "it wants resource is Tool in Host::\"files.example.com\""),
        ("tool", "resource", "it wants resource == Tool::\"https://mail.example.com/\""),
        ("night", "condition", "this does not hold: when { (context.time.hour < 6 || context.time.hour > 20) }"),
        ("unless", "condition", "this does not hold: unless { context.time.weekday > 5 }"),
        ("broken", "error", "integer overflow while attempting to add the values `1` and `9223372036854775807`"),
        ("read", "holds", ""),
        ("stop", "action", "it wants action == Action::\"write\""),
    ];
    assert_eq!(found, expected);
    assert_eq!((explained.decision, &*explained.why), ("allow", "permitted by `read`"));
    assert_eq!(explained.errors.len(), 1);
}

#[test]
fn an_answer_says_why() {
    let step_up = "@id(\"s\") @step_up(\"reads mail\") permit(principal, action == Action::\"read\", resource);";
    let rows = [
        (POLICIES, WRITE, false, "deny", "forbidden by `stop`"),
        ("", READ, false, "deny", "no policy permits it"),
        (step_up, READ, false, "step_up", "permitted by `s` once an approver agrees: reads mail"),
        (step_up, READ, true, "allow", "permitted by `s`, and an approver agreed"),
    ];
    for (policies, action, approved, decision, why) in rows {
        let case = Case { approved, ..Case::default() };
        let explained = case.ask(action, |question| explain(&set(policies), question));
        assert_eq!((explained.decision, &*explained.why), (decision, why));
    }
}
