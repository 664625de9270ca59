use super::*;
use crate::policy::scan::{MAX_NESTING, MAX_OPERATORS};

fn file(name: &str, text: &str) -> PolicyFile {
    PolicyFile { path: Path::new(&format!("/p/{name}")).into(), text: text.to_owned() }
}

fn mistakes(files: &[PolicyFile]) -> Vec<String> {
    let found = compile(BuiltIn::Issue, files).err().unwrap_or_default();
    found.iter().map(|mistake| mistake.to_string().replace("/p/", "")).collect()
}

fn mistakes_of(text: &str) -> Vec<String> {
    mistakes(&[file("a.cedar", text)])
}

#[test]
fn every_mistake_has_its_place_and_says_what_to_do() {
    let rows: &[(&str, &[&str])] = &[
        ("permit(principal, action, resource)", &["a.cedar:1:36: unexpected end of input: expected `;` or identifier"]),
        (
            "permit(principal, action,);",
            &[
                "a.cedar:1:25: this policy is missing the `resource` variable in the scope; policy scopes must contain a `principal`, `action`, and `resource` element in that order",
            ],
        ),
        (
            "\n\n  allow(principal, action, resource);",
            &["a.cedar:3:3: invalid policy effect: allow; effect must be either `permit` or `forbid`"],
        ),
        (
            "permit(principal, action, resource) when { context.purpose = \"x\" };",
            &["a.cedar:1:44: '=' is not a valid operator in Cedar; try using '==' instead"],
        ),
        (
            "permit(principal, action == Action::\"reed\", resource);",
            &["a.cedar:1:29: unrecognized action `Action::\"reed\"`; did you mean `Action::\"read\"`?"],
        ),
        (
            "permit(principal == Agentt::\"spiffe://td/a\", action, resource);",
            &["a.cedar:1:21: unrecognized entity type `Agentt`; did you mean `Agent`?"],
        ),
        (
            "permit(principal, action == Action::\"start\", resource) when { context.purpos == \"x\" };",
            &["a.cedar:1:63: attribute `purpos` in context for Action::\"start\" not found; did you mean `purpose`?"],
        ),
        (
            "permit(principal, action == Action::\"start\", resource) when { context.purpose == 1 };",
            &[
                "a.cedar:1:63: the types Long and String are not compatible; both operands to a `==` expression must have compatible types. Types must be exactly equal to be compatible",
            ],
        ),
        (
            "permit(principal, action == Action::\"start\", resource) when { context.user.kind == \"oidc\" };",
            &[
                "a.cedar:1:63: unable to guarantee safety of access to optional attribute `user` in context for Action::\"start\"; try testing for the attribute's presence with `context has user && ..`",
            ],
        ),
        (
            "permit(principal, action == Action::\"start\", resource in Host::\"h\");",
            &[
                "a.cedar:1:1: this policy never applies, whatever is asked: its condition cannot hold, or none of its actions is asked of such a principal and resource (`tether policy schema` shows which are; for calls write `action in Action::\"call\"`)",
            ],
        ),
        (
            "permit(principal, action == Action::\"call\", resource);",
            &[
                "a.cedar:1:1: this policy never applies, whatever is asked: its condition cannot hold, or none of its actions is asked of such a principal and resource (`tether policy schema` shows which are; for calls write `action in Action::\"call\"`)",
            ],
        ),
        (
            "@effect(\"read\") permit(principal, action in Action::\"call\", resource);",
            &[
                "a.cedar:1:1: says what a call does and permits nothing: write @effect(\"read\") permit (principal, action == Action::\"classify\", resource), and permit the call by a policy of its own",
            ],
        ),
        (
            "permit(principal, action == Action::\"classify\", resource);",
            &[
                "a.cedar:1:38: says what a call does and permits nothing: write @effect(\"read\") permit (principal, action == Action::\"classify\", resource), and permit the call by a policy of its own",
            ],
        ),
        (
            "@effect(\"reads\") permit(principal, action == Action::\"classify\", resource);",
            &["a.cedar:1:1: `@effect` is what a call does: write @effect(\"read\"), (\"write\") or (\"irreversible\")"],
        ),
        (
            "@step_up(\"x\") permit(principal, action == Action::\"reach\", resource);",
            &[
                "a.cedar:1:1: nobody can be asked about `reach`, which is outside any session: put @step_up on a policy of `action in Action::\"call\"`",
            ],
        ),
        (
            "permit(principal, action, resource) when { context.purpose == \"x\" };",
            &[
                "a.cedar:1:44: attribute `purpose` in context for Action::\"classify\" not found; did you mean `rpc`?",
                "a.cedar:1:44: attribute `purpose` in context for Action::\"issue\" not found; did you mean `audience`?",
                "a.cedar:1:44: attribute `purpose` in context for Action::\"reach\" not found; did you mean `proof`?",
            ],
        ),
        (
            "permit(principal == ?principal, action, resource);",
            &[
                "a.cedar:1:21: expected a static policy, got a template containing the slot ?principal; try removing the template slot(s) from this policy",
            ],
        ),
        (
            "@stepup(\"why\") permit(principal, action == Action::\"start\", resource);",
            &[
                "a.cedar:1:1: unknown annotation `@stepup`: known are @id, @step_up, @one_use, @redact, @stale and @effect; write a comment for anything else",
            ],
        ),
        (
            "@step_up permit(principal, action == Action::\"start\", resource);",
            &["a.cedar:1:1: `@step_up` tells the approver why: write @step_up(\"sends mail to customers\")"],
        ),
        (
            "@step_up(\"why\") forbid(principal, action == Action::\"start\", resource);",
            &["a.cedar:1:1: `@step_up` goes with a permission: put it on a `permit`"],
        ),
        (
            "@step_up(\"why\") permit(principal, action, resource);",
            &[
                "a.cedar:1:1: nobody can be asked about `issue`: put @step_up on a policy that names its actions, such as `action in Action::\"call\"`",
            ],
        ),
        (
            "@one_use(\"yes\") permit(principal, action, resource);",
            &["a.cedar:1:1: `@one_use` has no value: write @one_use"],
        ),
        (
            "@redact(\"purpose,nothing\") permit(principal, action, resource);",
            &[
                "a.cedar:1:1: `@redact` names fields of audit records, and `nothing` is none that may be left out: docs/audit.md lists them",
            ],
        ),
        (
            "@stale(\"1h\") permit(principal, action, resource);",
            &[
                "a.cedar:1:1: `@stale` is how old a node's last word may be: the longest lifetime allowed here is `5m`, not `1h`",
            ],
        ),
        (
            "@id(\"two words\") permit(principal, action, resource);",
            &["a.cedar:1:1: `@id` is 1 to 128 letters, digits and any of . _ : / -, such as @id(\"mail.send\")"],
        ),
        (
            "@id(\"00-issue\") permit(principal, action, resource);",
            &["a.cedar:1:1: the id `00-issue` is already used by the policy from built-in: give it another @id"],
        ),
        (
            "permit(principal, action, resource); permit(principal, action, resource);",
            &["a.cedar:1:38: the policy from a.cedar:1 is called `a.cedar:1` too: give one of them an @id"],
        ),
        (
            "permit(principal == Agent::\"spiffe://TD/a\", action, resource);",
            &[
                "a.cedar:1:28: `Agent::\"spiffe://TD/a\"` is never met: its id is no SPIFFE ID: a trust domain has only the characters a-z, 0-9, `.`, `-` and `_`, not `T`",
            ],
        ),
        (
            "forbid(principal in AgentPath::\"example.org\", action, resource);",
            &[
                "a.cedar:1:32: `AgentPath::\"example.org\"` is never met: its id is no SPIFFE ID: a SPIFFE ID begins with `spiffe://`",
            ],
        ),
        (
            "forbid(principal, action == Action::\"mint\", resource in Host::\"Tool.example.com\");",
            &[
                "a.cedar:1:63: `Host::\"Tool.example.com\"` is never met: write the name alone, in lower case and without port, such as `Host::\"tool.example.com\"`",
            ],
        ),
        (
            "forbid(principal, action == Action::\"mint\", resource in Host::\"a.com:443\");",
            &[
                "a.cedar:1:63: `Host::\"a.com:443\"` is never met: write the name alone, in lower case and without port, such as `Host::\"tool.example.com\"`",
            ],
        ),
        (
            "forbid(principal, action == Action::\"mint\", resource in Prefix::\"tool/mail\");",
            &[
                "a.cedar:1:65: `Prefix::\"tool/mail\"` is never met: a target is an absolute URI with `http` or `https`, such as `https://tool.example.com/path`",
            ],
        ),
        (
            "forbid(principal, action == Action::\"mint\", resource == Tool::\"https://a.com\");",
            &[
                "a.cedar:1:63: `Tool::\"https://a.com\"` is never met: write its URI in normal form, `Tool::\"https://a.com/\"`",
            ],
        ),
        (
            "forbid(principal, action == Action::\"issue\", resource == Credential::\"x508\");",
            &[
                "a.cedar:1:58: entity `Credential::\"x508\"` is of an enumerated entity type, but `\"x508\"` is not declared as a valid eid; valid entity eids: \"x509\", \"jwt\", \"wit\"",
            ],
        ),
        ("\"open", &["a.cedar:1:1: invalid token; try checking that all strings are closed properly"]),
        ("\u{7}", &["a.cedar:1:1: invalid token"]),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in rows {
        let found = mistakes_of(text);
        if found != *expected {
            wrong.push(format!("{text:?}, &{found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_good_file_is_not_in_force_beside_a_bad_one_and_each_bad_one_is_named() {
    let good = file("a.cedar", "permit(principal, action, resource);");
    let bad = |name: &str| file(name, "permit(principal, action, resource");
    let found = mistakes(&[good, bad("b.cedar"), bad("c.cedar")]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("b.cedar:1:") && found[1].starts_with("c.cedar:1:"), "{found:?}");
}

#[test]
fn policies_are_called_by_their_id_or_else_by_their_place() {
    let text = "// one\n@id(\"one\")\npermit(principal, action, resource);\n\n  permit(principal, action, resource);\n";
    let set = compile(BuiltIn::Dev, &[file("a.cedar", text)]).unwrap().set;
    let named: Vec<_> = set.policies().iter().map(|rule| (rule.id(), rule.origin().to_string())).collect();
    let expected =
        [("00-issue", "built-in"), ("dev", "built-in"), ("one", "/p/a.cedar:2"), ("a.cedar:5", "/p/a.cedar:5")];
    assert_eq!(named, expected.map(|(id, origin)| (id, origin.to_owned())));
}

#[test]
fn the_digest_is_that_of_the_policies_and_not_of_how_they_are_spread_over_files() {
    let digest = |files: &[PolicyFile]| compile(BuiltIn::Issue, files).unwrap().set.digest().to_owned();
    let (a, b) = ("@id(\"a\") permit(principal, action, resource);", "@id(\"b\") forbid(principal, action, resource);");
    let together = digest(&[file("x.cedar", &format!("{a}\n{b}"))]);
    assert_eq!(together.len(), 64);
    assert_eq!(together, digest(&[file("1.cedar", b), file("2.cedar", &format!("// comment\n{a}"))]));
    assert_ne!(together, digest(&[file("x.cedar", a)]));
    assert_ne!(together, digest(&[file("x.cedar", &format!("{a}\n{}", b.replace("forbid", "permit")))]));
}

/// What is as deep as it may be is read, decided about and dropped on a thread with a usual stack; what is deeper is
/// refused.
#[test]
fn nothing_is_nested_deeper_than_a_stack_can_bear() {
    let policy =
        |condition: String| format!("permit(principal, action == Action::\"start\", resource) when {{ {condition} }};");
    let chain = |operator: &str, part: &str, count: usize| policy(vec![part; count].join(operator));
    let nested = |open: &str, close: &str, depth: usize| {
        policy(format!("{}context.approved{}", open.repeat(depth), close.repeat(depth)))
    };
    let conditional = |depth: usize| policy(format!("{}true", "if context.approved then true else ".repeat(depth)));
    // Each part has three operators: two accesses and a comparison.
    let most = MAX_OPERATORS / 4 - 1;
    let allowed = [
        chain(" || ", "context.approved", MAX_OPERATORS / 2 - 2),
        chain(" && ", "context.binding > 0", most),
        policy(format!("{} > 0", vec!["context.binding"; MAX_OPERATORS / 2 - 3].join(" + "))),
        nested("(", ")", MAX_NESTING - 2),
        nested("!(", ")", MAX_NESTING - 2),
        conditional(MAX_OPERATORS / 2 - 2),
        policy(format!("context.session.scopes.containsAny([{}])", vec!["\"a\""; 10_000].join(","))),
    ];
    for text in &allowed {
        let compiled = compile(BuiltIn::Issue, &[file("a.cedar", text)]);
        let set = compiled.unwrap_or_else(|mistakes| panic!("{}: {mistakes:?}", &text[..120])).set;
        let decide = || {
            crate::policy::tests::Case::default().ask(Action::Start, |question| {
                assert_eq!(set.decide(question).errors, Vec::<String>::new(), "{}", &text[..120]);
                assert_eq!(crate::policy::explain(&set, question).policies.len(), 2);
            });
        };
        // As the threads of the agent have it. Without optimisation every level takes many times as much.
        let stack = if cfg!(debug_assertions) { 8 << 20 } else { 2 << 20 };
        let decided = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(stack).spawn_scoped(scope, decide).unwrap();
            thread.join()
        });
        assert!(decided.is_ok(), "{}", &text[..120]);
    }
    let refused = [
        chain(" || ", "context.approved", 100_000),
        nested("(", ")", 100_000),
        nested("[", "]", 100_000),
        nested("{a: ", "}", 100_000),
        nested("!", "", 100_000),
        nested("-", "", 100_000),
        conditional(20_000),
        policy(format!("context{}", ".a".repeat(200_000))),
        policy(format!("context{}", "[\"a\"]".repeat(200_000))),
        "(".repeat(1 << 20),
        "permit(".repeat(100_000),
        "@a".repeat(100_000),
        "\\".repeat(1 << 20),
    ];
    for text in &refused {
        assert!(!mistakes_of(text).is_empty(), "{}", &text[..60]);
    }
}

#[test]
fn there_are_not_too_many_policies() {
    let many = "forbid(principal,action,resource);\n".repeat(MAX_POLICIES);
    let found = mistakes_of(&many);
    assert_eq!(found, [format!(" {} policies; at most {MAX_POLICIES} are allowed", MAX_POLICIES + 1)]);
}

#[test]
fn text_that_looks_like_something_else_is_allowed_and_named() {
    let text = "permit(principal, action == Action::\"start\", resource) when { context.purpose == \"a\u{202e}b\" };";
    let compiled = compile(BuiltIn::Issue, &[file("a.cedar", text)]).unwrap();
    assert_eq!(compiled.warnings.len(), 1);
    assert!(compiled.warnings[0].to_string().starts_with("/p/a.cedar:1:"), "{:?}", compiled.warnings);
}
