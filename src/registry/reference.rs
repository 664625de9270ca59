//! What can stand in an entry, described once: for the parser's list of fields, the manual page and the reference.

/// A field of an `[[entry]]` table.
#[derive(Clone, Copy, Debug)]
pub struct FieldDoc {
    /// Its name.
    pub name: &'static str,
    /// What kind of value it has.
    pub kind: &'static str,
    /// A value it could have, in TOML.
    pub example: &'static str,
    /// What it means, and what holds without it.
    pub doc: &'static str,
}

/// A kind of selector.
#[derive(Clone, Copy, Debug)]
pub struct SelectorDoc {
    /// The type and the key, as in [`crate::selector::KINDS`].
    pub kind: (&'static str, &'static str),
    /// A value it could have.
    pub example: &'static str,
    /// What it says about a process.
    pub doc: &'static str,
}

const TEXT: &str = "text";
const TEXTS: &str = "list of texts";
const SPAN: &str = "time span";
const BOOLEAN: &str = "true or false";

const fn field(name: &'static str, kind: &'static str, example: &'static str, doc: &'static str) -> FieldDoc {
    FieldDoc { name, kind, example, doc }
}

const fn selector(kind: &'static str, key: &'static str, example: &'static str, doc: &'static str) -> SelectorDoc {
    SelectorDoc { kind: (kind, key), example, doc }
}

/// Every field there is, in the order in which entries are written.
pub const FIELDS: &[FieldDoc] = &[
    field(
        "id",
        TEXT,
        r#""billing-api""#,
        "A name for the entry: 1 to 255 letters, digits, `.`, `_` and `-`. No two entries have the same; a second one is refused \
         with both places named. Absent: made from the SPIFFE ID and the selectors.",
    ),
    field(
        "spiffe_id",
        TEXT,
        r#""spiffe://example.org/unit/{systemd.name}""#,
        "The identity it gives. Required. In the path `{type.key}` stands for the one value that a process has of that kind of \
         selector, and `{a|b}` for the first of several that has exactly one, legal in a path. A process without such a value \
         does not match, and `tether explain` says so.",
    ),
    field(
        "match",
        TEXTS,
        r#"["systemd:unit:billing.service", "unix:user:billing"]"#,
        "Selectors that must all hold. Required, and never empty.",
    ),
    field(
        "unless",
        TEXTS,
        r#"["unix:uid:0"]"#,
        "Selectors of which none may hold. Where it cannot be found out, the entry is unavailable to the process.",
    ),
    field("owner", TEXT, r#""team-billing@example.org""#, "Who answers for the entry. Required, but not with `--dev`."),
    field(
        "hint",
        TEXT,
        r#""internal""#,
        "What the workload is told that the identity is for, when it has several. Of two entries with the same hint in one \
         answer the older keeps it.",
    ),
    field(
        "x509_ttl",
        SPAN,
        r#""15m""#,
        "How long X509-SVIDs are valid: at most half of authority.ca_ttl. Absent: svid.x509_ttl.",
    ),
    field(
        "jwt_ttl",
        SPAN,
        r#""5m""#,
        "How long JWT-SVIDs and WIT-SVIDs are valid: at most an hour. Absent: svid.jwt_ttl. svid.jwt_ttl_caps can make it less.",
    ),
    field(
        "credential_ttl",
        SPAN,
        r#""12h""#,
        "How long X509-SVIDs are valid that a systemd unit gets by `LoadCredential=`, which cannot be renewed while it runs. \
         Only with `exportable`. Absent: half of authority.ca_ttl.",
    ),
    field(
        "audiences",
        TEXTS,
        r#"["https://api.example.com"]"#,
        "Whom JWT-SVIDs may be for; `[\"*\"]` for anybody. Absent: the entry gives no JWT-SVIDs.",
    ),
    field(
        "serves",
        TEXTS,
        r#"["https://tool.example.com/"]"#,
        "The beginnings of the URIs for which the process may, as a tool, have proofs checked; `[\"*\"]` for all.",
    ),
    field(
        "may_act_for",
        TEXTS,
        r#"["spiffe://example.org/agent/*"]"#,
        "The SPIFFE IDs in whose name the process may ask, as a proxy does; with `/*` at its end all below one.",
    ),
    field("dns_names", TEXTS, r#"["billing.example.org"]"#, "DNS names in X509-SVIDs."),
    field(
        "federates_with",
        TEXTS,
        r#"["partner.example"]"#,
        "Trust domains whose bundles the process gets beside our own.",
    ),
    field(
        "bind",
        TEXT,
        r#""process""#,
        "Whose end revokes what was issued: `process`, the very program that asked; `unit`, its unit or control group; `node`, \
         nothing but this host. Absent: `process`.",
    ),
    field(
        "single_use",
        BOOLEAN,
        "false",
        "Whether the agent accepts each JWT-SVID once, when it is asked to validate it. Absent: false.",
    ),
    field(
        "exportable",
        BOOLEAN,
        "false",
        "Whether keys and tokens may be written to files, where they work for whoever reads them. Needs `bind` to be `unit` or \
         `node`. Absent: false.",
    ),
    field(
        "disabled",
        BOOLEAN,
        "false",
        "Whether the entry is switched off: it gives nothing, and what it gave is revoked. Absent: false.",
    ),
    field(
        "expires_at",
        "time",
        r#""2027-03-01T00:00:00Z""#,
        "When the entry ends, in RFC 3339. Nothing it gives is valid longer. Absent: never.",
    ),
];

/// Every kind of selector, in the order of [`crate::selector::KINDS`].
pub const SELECTORS: &[SelectorDoc] = &[
    selector("unix", "uid", "1000", "The effective user id, as the agent's user namespace has it."),
    selector("unix", "gid", "1000", "The effective group id."),
    selector("unix", "user", "billing", "The name of that user, by the host's name service."),
    selector("unix", "group", "billing", "The name of that group."),
    selector("unix", "supplementary_gid", "27", "A supplementary group id."),
    selector("unix", "supplementary_group", "adm", "The name of a supplementary group."),
    selector(
        "unix",
        "path",
        "/usr/bin/billing",
        "The path of the executable, where that path on the host leads to the very file that runs: not in a container.",
    ),
    selector("unix", "sha256", "9f86d081884c7d65…", "The SHA-256 of the executable, in lower-case hex: 64 digits."),
    selector(
        "systemd",
        "id",
        "billing.service",
        "The unit as systemd calls it; unknown while systemd does not answer.",
    ),
    selector("systemd", "fragment_path", "/etc/systemd/system/billing.service", "The file of that unit."),
    selector(
        "systemd",
        "unit",
        "billing@blue.service",
        "The unit of the host's systemd that the process is in: systemd's word, else that of its control group, never inside \
         one that was delegated.",
    ),
    selector("systemd", "slice", "system.slice", "The slice that unit is in."),
    selector("systemd", "name", "billing@blue", "The unit's name without its kind."),
    selector("systemd", "prefix", "billing", "Of a template's unit: what is before the `@`."),
    selector("systemd", "instance", "blue", "Of a template's unit: what is behind the `@`."),
    selector(
        "systemd",
        "user_unit",
        "agent.service",
        "The unit of the user's own manager. The user chooses that name, so an entry needs a `unix:uid` or `unix:user` beside \
         it.",
    ),
    selector("systemd", "invocation_id", "c48f0d9e2b6a4f1f…", "This run of the unit: 32 hex digits."),
    selector(
        "cgroup",
        "path",
        "/system.slice/billing.service",
        "The control group. Below a delegated one its owner chooses the names.",
    ),
    selector("lsm", "label", "unconfined", "What /proc/PID/attr/current says, as it says it."),
    selector("lsm", "apparmor", "billing", "The AppArmor profile, while it is enforced."),
    selector("lsm", "selinux", "system_u:system_r:billing_t:s0", "The SELinux context."),
    selector("lsm", "smack", "billing", "The Smack label."),
    selector(
        "launch",
        "path",
        "/usr/bin/python3",
        "The program that a believed launcher started, by its path on the host.",
    ),
    selector("launch", "sha256", "9f86d081884c7d65…", "The SHA-256 of that program."),
    selector("launch", "script", "/opt/agent/agent.py", "The script it was given, by its path on the host."),
    selector("launch", "script_sha256", "60303ae22b998861…", "The SHA-256 of that script."),
    selector("launch", "dir", "/opt/agent", "The directory that was measured with it, by its path on the host."),
    selector("launch", "dir_sha256", "fd61a03af4f77d87…", "The SHA-256 over all of that directory."),
    selector("docker", "label", "com.example.app:billing", "A label of the container, as KEY:VALUE."),
    selector("docker", "env", "STAGE=production", "A variable of the container's environment, as NAME=VALUE."),
    selector(
        "docker",
        "image_id",
        "registry.example.com/billing:1.4",
        "The name of its image, as it was made from it.",
    ),
    selector("docker", "image_config_digest", "sha256:9e9f99dfce2d…", "The digest of its image's configuration."),
    selector("docker", "name", "billing", "The container's name."),
    selector("podman", "label", "com.example.app:billing", "A label of the container, as KEY:VALUE."),
    selector("podman", "env", "STAGE=production", "A variable of the container's environment, as NAME=VALUE."),
    selector(
        "podman",
        "image_id",
        "registry.example.com/billing:1.4",
        "The name of its image, as it was made from it.",
    ),
    selector("podman", "image_config_digest", "sha256:9e9f99dfce2d…", "The digest of its image's configuration."),
    selector("podman", "name", "billing", "The container's name."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Rules, Source, parse_entry};
    use crate::selector::{KINDS, Selector};

    #[test]
    fn every_kind_of_selector_is_described_and_no_other() {
        let described: Vec<_> = SELECTORS.iter().map(|selector| selector.kind).collect();
        assert_eq!(described, KINDS);
        for SelectorDoc { kind: (kind, key), example, .. } in SELECTORS {
            assert!(Selector::parse(&format!("{kind}:{key}:{example}")).is_ok(), "{kind}:{key}");
        }
    }

    #[test]
    fn every_field_that_is_described_is_read_and_its_example_is_right() {
        let rules = Rules::new("example.org".parse().expect("legal"));
        let base = [
            ("spiffe_id", r#""spiffe://example.org/a""#),
            ("match", r#"["unix:uid:1"]"#),
            ("owner", r#""o""#),
            ("bind", r#""unit""#),
            ("exportable", "true"),
        ];
        for FieldDoc { name, example, .. } in FIELDS {
            let without = base.iter().filter(|(other, _)| other != name && (*name != "bind" || *other != "exportable"));
            let lines = without.copied().chain([(*name, *example)]).map(|(name, value)| format!("{name} = {value}\n"));
            let text: String = lines.collect();
            let parsed = parse_entry(&text, &Source::BuiltIn, &rules);
            assert!(parsed.is_ok(), "{text}{parsed:?}");
        }
    }
}
