use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::load::load;
use super::*;
use crate::jwt::Algorithm;
use crate::user::KeySource;

const FILE: &str = "/etc/tether/tether.toml";

fn from_file(text: &str) -> Result<Loaded, Mistakes> {
    load(&Source::default(), &[(Path::new(FILE), text)])
}

fn from_layers(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let source = Source {
        env: env.iter().map(owned).collect::<BTreeMap<_, _>>(),
        flags: flags.iter().map(owned).collect(),
        ..Source::default()
    };
    load(&source, &[(Path::new(FILE), text)])
}

/// The mistakes as people see them, without the name of the file.
fn mistakes(loaded: Result<Loaded, Mistakes>) -> Vec<String> {
    let Mistakes(found) = loaded.expect_err("refused");
    found.iter().map(|mistake| mistake.to_string().replace(FILE, "FILE")).collect()
}

#[test]
fn a_file_with_only_the_trust_domain_gives_the_defaults() {
    let config = from_file("trust_domain = \"example.org\"").expect("right").config;
    let expected = Config { trust_domain: "example.org".parse().expect("legal"), ..Config::default() };
    assert_eq!(config, expected);
    assert_eq!(config.svid.x509_ttl, Duration::from_secs(900));
    assert!(!config.dev);
}

#[test]
fn every_kind_of_mistake_is_placed_and_says_what_to_write() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["setting trust_domain: `trust_domain`: it is required"]),
        ("trust_domain = \"Example\"", &["FILE:1:16: `trust_domain`: a trust domain has only the characters"]),
        (
            "trust_domain = 7",
            &["FILE:1:16: `trust_domain`: expected a trust domain such as \"example.org\", not a whole"],
        ),
        (
            "\n\n  trustdomain = \"a\"",
            &["FILE:3:3: there is no setting `trustdomain`; before the first section there are"],
        ),
        ("[svid]\nx509_tll = \"1m\"", &["FILE:2:1: there is no setting `svid.x509_tll`; in [svid] there are x509_ttl"]),
        ("[svids]\nx = 1", &["FILE:1:2: there is no setting `svids`"]),
        ("svid = 3", &["FILE:1:1: `svid` is a section, not a whole number: write `[svid]`"]),
        ("[svid]\nx509_ttl = \"15\"", &["FILE:2:12: `svid.x509_ttl`: expected a duration such as"]),
        (
            "[svid]\nx509_ttl = 15",
            &["FILE:2:12: `svid.x509_ttl`: expected a duration such as \"15m\", not a whole number"],
        ),
        ("[limits]\nconnections = -1", &["FILE:2:15: `limits.connections`: expected a whole number"]),
        ("[limits]\nworkload_message = \"4 KB\"", &["FILE:2:20: `limits.workload_message`: expected a size"]),
        (
            "[authority]\nkind = \"hsm\"",
            &["FILE:2:8: `authority.kind`: expected one of \"embedded\" \"disk\", not `hsm`"],
        ),
        ("[listen]\nadmin = \"a.sock\"", &["FILE:2:9: `listen.admin`: `a.sock` is not an absolute path"]),
        ("[http]\naddress = \"localhost:1\"", &["FILE:2:11: `http.address`: expected an address such as"]),
        ("[http]\nallow_remote = \"yes\"", &["FILE:2:16: `http.allow_remote`: expected true or false, not a string"]),
        ("[log]\nlevel = \"inof\"", &["FILE:2:9: `log.level`: `inof` is not a log level"]),
        ("[admin]\nviewers = [\"a\", 1]", &["FILE:2:17: `admin.viewers`: expected a list of strings, not of a whole"]),
        ("[svid]\njwt_ttl_caps = [\"a=1m\"]", &["FILE:2:16: `svid.jwt_ttl_caps`: expected a table such as { \""]),
        (
            "[svid]\njwt_ttl_caps = { a = \"1m\",\n  b = \"1\" }",
            &["FILE:3:7: `svid.jwt_ttl_caps`: expected a duration such as"],
        ),
        ("[svid.jwt_ttl_caps]\na = 60", &["FILE:2:5: `svid.jwt_ttl_caps`: expected a duration such as"]),
        ("[svid.jwt_ttl_caps]\na = \"500ms\"", &["FILE:2:5: `svid.jwt_ttl_caps`: the cap of `a` is at least 1s"]),
        ("[svid.jwt_ttl_caps]\n\"\" = \"1m\"", &["FILE:2:6: `svid.jwt_ttl_caps`: an audience is empty"]),
        ("[sessions]\nissuers = \"a\"", &["FILE:2:11: `sessions.issuers`: expected a table such as { \""]),
        ("[sessions]\nissuers = { a = 1 }", &["FILE:2:13: `sessions.issuers`: the issuer `a`: expected a URL"]),
        (
            "[sessions.issuers.\"http://login.example.com\"]\naudience = \"a\"",
            &["FILE:1:19: `sessions.issuers`: the issuer `http://login.example.com`: the URL begins with `https://`"],
        ),
        (
            "[sessions.issuers.\"https://a.example/?b\"]\naudience = \"a\"",
            &["FILE:1:19: `sessions.issuers`: the issuer `https://a.example/?b`: an issuer's URL has no query"],
        ),
        (
            "[sessions]\nissuers.\"https://a.example\" = \"b\"",
            &["FILE:2:31: `sessions.issuers`: expected a table such as { \""],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\njwks_url = \"https://a.example\"",
            &["FILE:1:1: `sessions.issuers`: an issuer needs `audience`"],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\naudience = \"a\"\njwks = \"b\"",
            &["FILE:3:1: `sessions.issuers`: an issuer has no `jwks`; it has audience, jwks_url, jwks_file"],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\naudience = \"a\"\njwks_url = \"http://b.example\"",
            &["FILE:3:12: `sessions.issuers`: `jwks_url`: the URL begins with `https://`"],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\naudience = \"a\"\nalgorithms = [\"HS256\"]",
            &["FILE:3:14: `sessions.issuers`: `algorithms`: `HS256` is none of RS256, RS384"],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\naudience = \"a\"\nalgorithms = [1]",
            &["FILE:3:15: `sessions.issuers`: `algorithms`: expected a list of strings"],
        ),
        (
            "[sessions.issuers.\"https://a.example\"]\naudience = \"a\"\nmax_age = 60",
            &["FILE:3:11: `sessions.issuers`: `max_age`: expected a duration"],
        ),
        ("a = \n[svid]\nx509_ttl = 1", &["FILE:1:", "FILE:1:1: there is no setting `a`", "FILE:3:12: `svid.x509_ttl`"]),
        ("[log]\nformat = \"text\"\nformat = \"json\"", &["FILE:3:1: duplicate key"]),
    ];
    for (text, expected) in cases {
        let found = mistakes(from_file(text));
        assert_eq!(found.len(), expected.len(), "{text:?}: {found:#?}");
        for (found, expected) in found.iter().zip(*expected) {
            assert!(found.starts_with(expected), "{text:?}: {found}");
        }
    }
}

#[test]
fn settings_that_do_not_fit_together_are_refused_at_the_one_to_change() {
    let cases: &[(&str, &str)] = &[
        ("[authority]\nkind = \"disk\"\nkey_file = \"/k\"", "setting authority.cert_file: "),
        ("[authority]\ncert_file = \"/c\"", "FILE:3:13: `authority.cert_file`: only kind \"disk\" reads it"),
        ("[authority]\njwt_issuer = \"http://a\"", "FILE:3:14: "),
        ("[authority]\nca_ttl = \"20m\"", "setting svid.x509_ttl: "),
        ("[svid]\nx509_ttl = \"13h\"", "FILE:3:12: `svid.x509_ttl`: it is at most half of authority.ca_ttl"),
        ("[svid]\nx509_ttl = \"0s\"", "FILE:3:12: "),
        ("[authority]\nroot_ttl = \"25h\"", "setting authority.ca_ttl: "),
        ("[authority]\npropagation = \"7h\"", "FILE:3:15: "),
        ("[listen]\nadmin = \"/run/tether/workload/admin.sock\"", "FILE:3:9: `listen.admin`: it shares a directory"),
        ("[limits]\nconnections = 0", "FILE:3:15: "),
        ("[http]\naddress = \"0.0.0.0:80\"", "FILE:3:11: `http.address`: other hosts can reach it"),
    ];
    for (text, expected) in cases {
        let found = mistakes(from_file(&format!("trust_domain = \"td\"\n{text}")));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text:?}: {found:#?}");
    }
    let long = format!("trust_domain = \"td\"\n[listen]\nworkload = \"/{}\"", "a".repeat(107));
    assert!(mistakes(from_file(&long))[0].contains("at most 107 bytes"));
    let fine = "trust_domain = \"td\"\n[http]\naddress = \"0.0.0.0:80\"\nallow_remote = true";
    assert!(from_file(fine).is_ok());
}

#[test]
fn flags_win_over_the_environment_over_the_file_and_each_value_knows_its_origin() {
    let text = "trust_domain = \"file\"\n[svid]\nx509_ttl = \"1m\"\njwt_ttl = \"1m\"\n";
    let env =
        [("TETHER_SVID__X509_TTL", "2m"), ("TETHER_TRUST_DOMAIN", "env"), ("TETHER_ATTEST__UNIX__MAX_HASH", "1MiB")];
    let loaded = from_layers(text, &env, &[("svid.x509_ttl", "3m")]).expect("right");
    let config = &loaded.config;
    assert_eq!(config.svid.x509_ttl, Duration::from_secs(180));
    assert_eq!(config.svid.jwt_ttl, Duration::from_secs(60));
    assert_eq!(config.trust_domain.as_str(), "env");
    assert_eq!(config.attest.unix.max_hash, ByteSize::mib(1));

    let origins: Vec<_> = ["svid.x509_ttl", "svid.jwt_ttl", "trust_domain", "attest.unix.max_hash", "state_dir"]
        .map(|path| loaded.origin(path).to_string())
        .to_vec();
    let file = format!("{FILE}:4");
    assert_eq!(
        origins,
        ["--set", file.as_str(), "env TETHER_TRUST_DOMAIN", "env TETHER_ATTEST__UNIX__MAX_HASH", "default"]
    );
}

#[test]
fn misspelt_variables_and_flags_are_mistakes_and_foreign_variables_are_not() {
    let text = "trust_domain = \"td\"";
    let cases: &[(&str, &str)] = &[
        ("TETHER_SVID__X509_TLL", "environment variable TETHER_SVID__X509_TLL: there is no setting `svid.x509_tll`"),
        ("TETHER_SVIDS__X", "environment variable TETHER_SVIDS__X: there is no section `svids`"),
        ("TETHER_LOG__LEVEL", "environment variable TETHER_LOG__LEVEL: `log.level`: `1` is not a log level"),
    ];
    for (variable, expected) in cases {
        let found = mistakes(from_layers(text, &[(variable, "1")], &[]));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:#?}");
    }
    let foreign = [("TETHER_ADMIN_SOCKET", "/a"), ("TETHER_SESSION", "1"), ("PATH", "/bin"), ("TETHER_", "")];
    assert!(from_layers(text, &foreign, &[]).is_ok());
    let found = mistakes(from_layers(text, &[], &[("dev", "true")]));
    assert!(found[0].starts_with("--set dev: there is no setting `dev`"), "{found:#?}");
}

#[test]
fn an_empty_text_takes_back_an_optional_value_and_lists_are_separated_by_commas() {
    let text = "trust_domain = \"td\"\n[http]\naddress = \"127.0.0.1:1\"";
    let loaded = from_layers(text, &[("TETHER_HTTP__ADDRESS", "")], &[("admin.viewers", "a, b")]).expect("right");
    assert_eq!(loaded.config.http.address, None);
    assert_eq!(loaded.config.admin.viewers, ["a", "b"]);
}

#[test]
fn caps_of_audiences_are_a_table_in_the_file_and_pairs_elsewhere() {
    let caps = |loaded: Result<Loaded, Mistakes>| {
        let caps = loaded.expect("right").config.svid.jwt_ttl_caps;
        caps.iter().map(|(audience, cap)| format!("{audience} {}", cap.as_secs())).collect::<Vec<_>>()
    };
    let expected = ["* 300", "https://a?b=c 30"];
    let inline = "[svid]\njwt_ttl_caps = { \"https://a?b=c\" = \"30s\", \"*\" = \"5m\" }";
    let section = "[svid.jwt_ttl_caps]\n\"https://a?b=c\" = \"30s\"\n\"*\" = \"5m\"";
    for text in [inline, section] {
        assert_eq!(caps(from_file(&format!("trust_domain = \"td\"\n{text}"))), expected, "{text}");
    }
    let text = "trust_domain = \"td\"\n[svid]\njwt_ttl_caps = { a = \"1m\" }";
    let variable = "TETHER_SVID__JWT_TTL_CAPS";
    assert_eq!(caps(from_layers(text, &[(variable, "https://a?b=c=30s, *=5m")], &[])), expected);
    assert!(caps(from_layers(text, &[(variable, "")], &[])).is_empty(), "taken back");
    for wrong in ["a", "=1m", "a=", "a=1", "a=0s"] {
        assert_eq!(mistakes(from_layers(text, &[(variable, wrong)], &[])).len(), 1, "{wrong}");
    }
}

#[test]
fn durations_and_sizes_are_read_and_written_in_units() {
    let durations: &[(&str, Option<u64>, &str)] = &[
        ("500ms", Some(500), "500ms"),
        ("90s", Some(90_000), "90s"),
        ("1h30m", Some(5_400_000), "90m"),
        ("24h", Some(86_400_000), "24h"),
        ("1d", Some(86_400_000), "24h"),
        ("365d", Some(31_536_000_000), "365d"),
        ("0s", Some(0), "0s"),
        ("", None, ""),
        ("15", None, ""),
        ("m", None, ""),
        ("-1m", None, ""),
        ("1.5h", None, ""),
        ("30m1h", None, ""),
        ("1m 30s", None, ""),
        ("1m1m", None, ""),
        ("99999999999999999999d", None, ""),
        ("999999999999999d", None, ""),
    ];
    for (text, millis, written) in durations {
        let loaded = from_layers("trust_domain = \"td\"", &[], &[("limits.drain", text)]);
        match millis {
            Some(millis) => {
                let loaded = loaded.expect(text);
                assert_eq!(loaded.config.limits.drain, Duration::from_millis(*millis), "{text}");
                let shown = loaded.settings().into_iter().find(|s| s.name == "limits.drain").expect("listed");
                assert_eq!(shown.value, *written, "{text}");
            }
            None => assert_eq!(mistakes(loaded).len(), 1, "{text}"),
        }
    }
    let sizes: &[(&str, Option<u64>)] = &[
        ("2048B", Some(2048)),
        ("64KiB", Some(65_536)),
        ("1GiB", Some(1 << 30)),
        ("64", None),
        ("64kb", None),
        ("KiB", None),
    ];
    for (text, bytes) in sizes {
        let loaded = from_layers("trust_domain = \"td\"", &[], &[("limits.admin_message", text)]);
        assert_eq!(loaded.map(|loaded| loaded.config.limits.admin_message.bytes()).ok(), *bytes, "{text}");
    }
}

#[test]
fn the_shown_configuration_is_a_file_that_gives_the_same_configuration() {
    let text = "trust_domain = \"td\"\n[http]\naddress = \"127.0.0.1:9465\"\n\
         [svid.jwt_ttl_caps]\n\"a 'b' \\\"\\\\\\n\" = \"90s\"\n[log]\nlevel = \"info,tether::peer=trace\"";
    let loaded = from_file(text).expect("right");
    for origins in [false, true] {
        let again = from_file(&show(&loaded, origins)).expect("what is shown is right");
        assert_eq!(again.config, loaded.config);
    }
    assert!(show(&loaded, true).contains("# /etc/tether/tether.toml:3\n"), "{}", show(&loaded, true));
}

#[test]
fn the_example_with_every_line_taken_in_says_the_defaults() {
    let commented = example();
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ");
    let setting_lines = commented.lines().filter(is_setting).count();
    let taken_in: String = commented
        .lines()
        .map(|line| if is_setting(&line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = from_file(&taken_in).expect("the example is right").config;
    assert_eq!(config, Config { trust_domain: config.trust_domain.clone(), ..Config::default() });
    assert_eq!(setting_lines, super::load::values(&config).len());
}

#[test]
fn the_shipped_file_is_the_one_generated_from_the_settings() {
    let shipped = include_str!("../../packaging/tether.toml");
    assert!(shipped == example(), "packaging/tether.toml is stale; write it anew with `tether config example`");
}

#[test]
fn the_dev_configuration_is_complete_under_its_directory_and_can_be_overridden() {
    let source = Source {
        dev: Some(PathBuf::from("/tmp/dev")),
        env: [("TETHER_SVID__JWT_TTL".to_owned(), "1m".to_owned())].into(),
        ..Source::default()
    };
    let loaded = source.load().expect("right");
    let config = &loaded.config;
    assert!(config.dev);
    assert_eq!(config.trust_domain.as_str(), "dev.tether.internal");
    assert_eq!(config.listen.workload, Path::new("/tmp/dev/workload/workload.sock"));
    assert_eq!(config.listen.admin, Path::new("/tmp/dev/admin/admin.sock"));
    assert_eq!(config.entries_dir, Path::new("/tmp/dev/entries.d"));
    assert_eq!(config.svid.jwt_ttl, Duration::from_secs(60));
    assert_eq!(*loaded.origin("state_dir"), Origin::Dev);
    assert_eq!(*loaded.origin("svid.x509_ttl"), Origin::Default);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_what_to_do() {
    let source = Source { file: Some(PathBuf::from("/nonexistent/tether.toml")), ..Source::default() };
    let Mistakes(found) = source.load().expect_err("refused");
    let text = found[0].to_string();
    assert!(text.contains("/nonexistent/tether.toml") && text.contains("--config"), "{text}");
}

#[test]
fn issuers_are_the_same_from_the_file_the_environment_and_a_flag_and_show_as_what_they_are() {
    let file = r#"
        trust_domain = "example.org"
        [sessions.issuers."https://login.example.com/realm"]
        audience = "tether"
        [sessions.issuers."https://other.example.com/"]
        audience = "spiffe://example.org/tether"
        jwks_url = "https://keys.example.com/jwks?v=1"
        algorithms = ["ES256", "PS512"]
        authorized_parties = ["chat", "shell"]
        max_age = "10m"
        max_ttl = "1h"
        ca_file = "/etc/tether/idp.pem"
    "#;
    let loaded = from_file(file).expect("right");
    let issuers = &loaded.config.sessions.issuers;
    let (first, second) = (&issuers["https://login.example.com/realm"], &issuers["https://other.example.com/"]);
    assert_eq!((first.audience.as_str(), &first.keys), ("tether", &KeySource::Discovery));
    assert_eq!(first.algorithms, [Algorithm::Es256, Algorithm::Rs256]);
    assert_eq!((second.max_age, second.max_ttl), (Some(10 * MINUTE), Some(60 * MINUTE)));
    assert_eq!(second.algorithms, [Algorithm::Es256, Algorithm::Ps512]);
    assert_eq!(second.authorized_parties, ["chat", "shell"]);

    let again = from_file(&show(&loaded, false)).expect("what is shown is right");
    assert_eq!(again.config, loaded.config);
    let shown = show(&loaded, false);
    let inline = shown.lines().find_map(|line| line.strip_prefix("issuers = ")).expect("a line");
    let flagged = from_layers("trust_domain = \"example.org\"", &[], &[("sessions.issuers", inline)]);
    assert_eq!(flagged.expect("right").config, loaded.config);
    let env = from_layers("trust_domain = \"example.org\"", &[("TETHER_SESSIONS__ISSUERS", inline)], &[]);
    assert_eq!(env.expect("right").config, loaded.config);
    let taken_back = from_layers(file, &[], &[("sessions.issuers", "")]).expect("right");
    assert!(taken_back.config.sessions.issuers.is_empty());
    for text in ["x", "1", "{", "{}\nb = 1", "{ a = {} }"] {
        let found = mistakes(from_layers("trust_domain = \"example.org\"", &[], &[("sessions.issuers", text)]));
        assert!(found[0].starts_with("--set sessions.issuers: `sessions.issuers`: "), "{text}: {found:?}");
    }
}

#[test]
fn a_plain_issuer_is_for_dev_and_our_own_name_is_no_users_issuer() {
    let plain = r#"{ "http://127.0.0.1:8080" = { audience = "tether" } }"#;
    let found = mistakes(from_layers("trust_domain = \"example.org\"", &[], &[("sessions.issuers", plain)]));
    assert!(found[0].contains("without --dev every URL begins with `https://`"), "{found:?}");
    let dev = Source {
        dev: Some(PathBuf::from("/tmp/dev")),
        flags: vec![("sessions.issuers".to_owned(), plain.to_owned())],
        ..Source::default()
    };
    assert_eq!(load(&dev, &[]).expect("right").config.sessions.issuers.len(), 1);

    let own = "trust_domain = \"example.org\"\n[authority]\njwt_issuer = \"https://example.org\"\n\
               [sessions.issuers.\"https://example.org\"]\naudience = \"a\"";
    assert!(mistakes(from_file(own))[0].contains("our own tokens are of workloads"));
}

/// A configuration file with drop-ins beside it, each a name and a text.
fn with_drop_ins(main: Option<&str>, drop_ins: &[(&str, &str)]) -> (tempfile::TempDir, Source) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("tether.toml");
    if let Some(text) = main {
        std::fs::write(&file, text).expect("written");
    }
    std::fs::create_dir(drop_in_dir(&file)).expect("created");
    for (name, text) in drop_ins {
        std::fs::write(drop_in_dir(&file).join(name), text).expect("written");
    }
    (dir, Source { file: Some(file), ..Source::default() })
}

#[test]
fn of_a_setting_in_several_files_the_last_name_counts_and_is_its_origin() {
    let (dir, source) = with_drop_ins(
        Some("trust_domain = \"example.org\"\n[svid]\nx509_ttl = \"10m\"\njwt_ttl = \"1m\""),
        &[
            ("20-b.toml", "[svid]\nx509_ttl = \"30m\""),
            ("10-a.toml", "[svid]\n\nx509_ttl = \"20m\"\n[log]\nlevel = \"debug\""),
            (".30-c.toml", "[svid]\nx509_ttl = \"40m\""),
            ("30-c.toml.bak", "nonsense"),
        ],
    );
    let loaded = source.load().expect("right");
    assert_eq!(loaded.config.svid.x509_ttl, 30 * MINUTE);
    assert_eq!(loaded.config.svid.jwt_ttl, MINUTE, "a section is not replaced as a whole");
    let origin = |name: &str| loaded.origin(name).to_string().replace(dir.path().to_str().expect("text"), "DIR");
    assert_eq!(origin("svid.x509_ttl"), "DIR/tether.toml.d/20-b.toml:2");
    assert_eq!(origin("log.level"), "DIR/tether.toml.d/10-a.toml:5");
    assert_eq!(origin("svid.jwt_ttl"), "DIR/tether.toml:4");
    let over = Source { env: [("TETHER_SVID__X509_TTL".to_owned(), "5m".to_owned())].into(), ..source.clone() };
    assert_eq!(over.load().expect("right").config.svid.x509_ttl, 5 * MINUTE, "the environment is over all files");

    std::fs::write(dir.path().join("tether.toml.d/40-d.toml"), "[svid]\nx509_ttl = \"7m\"").expect("written");
    assert_eq!(source.load().expect("right").config.svid.x509_ttl, 7 * MINUTE, "a reload sees a new drop-in");
}

#[test]
fn mistakes_stand_in_the_file_they_are_in_and_every_file_is_looked_at() {
    let (dir, source) = with_drop_ins(
        Some("trust_domain = \"example.org\"\nnonsense = 1"),
        &[("10-a.toml", "[svid]\nx509_ttl = 5"), ("20-b.toml", "\n[svids]"), ("30-c.toml", "[svid]\njwt_ttl = \"0s\"")],
    );
    let found = |source: &Source| {
        let Mistakes(found) = source.load().expect_err("refused");
        let text = |mistake: &Mistake| mistake.to_string().replace(dir.path().to_str().expect("text"), "DIR");
        found.iter().map(text).collect::<Vec<_>>()
    };
    let mistakes = found(&source);
    let expected = ["DIR/tether.toml:2:1: ", "DIR/tether.toml.d/10-a.toml:2:12: ", "DIR/tether.toml.d/20-b.toml:2:2: "];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, place) in mistakes.iter().zip(expected) {
        assert!(mistake.starts_with(place), "{mistake}");
    }
    // What does not fit together is said of the file that set it last.
    std::fs::remove_file(dir.path().join("tether.toml.d/10-a.toml")).expect("removed");
    std::fs::remove_file(dir.path().join("tether.toml.d/20-b.toml")).expect("removed");
    std::fs::write(dir.path().join("tether.toml"), "trust_domain = \"example.org\"").expect("written");
    let mistakes = found(&source);
    assert!(mistakes[0].starts_with("DIR/tether.toml.d/30-c.toml:2:11: `svid.jwt_ttl`"), "{mistakes:#?}");
}

#[test]
fn drop_ins_are_enough_and_one_that_others_can_change_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, source) = with_drop_ins(None, &[("10-init.toml", "trust_domain = \"example.org\"")]);
    assert_eq!(source.load().expect("right").config.trust_domain.as_str(), "example.org");
    let drop_in = dir.path().join("tether.toml.d/10-init.toml");
    std::fs::set_permissions(&drop_in, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    std::fs::write(dir.path().join("tether.toml.d/20.toml"), b"\n a = \"\xff\"").expect("written");
    let Mistakes(found) = source.load().expect_err("refused");
    assert!(found[0].to_string().contains("10-init.toml: what is here would count as configuration"), "{found:?}");
    assert!(found[0].to_string().contains("can be changed by others (mode 0666): run chmod go-w on it"), "{found:?}");
    assert!(found[1].to_string().contains("20.toml:2:7: not UTF-8 from here on"), "{found:?}");
    let (_dir, source) = with_drop_ins(None, &[]);
    let Mistakes(found) = source.load().expect_err("refused");
    assert!(found[0].to_string().contains("name another one with --config"), "{found:?}");
}

#[test]
fn drop_ins_of_somebody_else_or_where_others_can_put_them_are_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let (dir, source) =
        with_drop_ins(Some("trust_domain = \"example.org\""), &[("10-a.toml", "[admin]\nviewers = [\"7\"]")]);
    let (drop_ins, drop_in) = (dir.path().join("tether.toml.d"), dir.path().join("tether.toml.d/10-a.toml"));
    let refused = |place: &str, why: &str| {
        let Mistakes(found) = source.load().expect_err("refused");
        let text = found[0].to_string();
        assert!(found.len() == 1 && text.contains(place) && text.contains(why), "{found:?}");
    };
    for mode in [0o777, 0o1777] {
        std::fs::set_permissions(&drop_ins, std::fs::Permissions::from_mode(mode)).expect("chmod");
        refused("tether.toml.d: ", "run chmod go-w on it");
    }
    std::fs::set_permissions(&drop_ins, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(source.load().is_ok());
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: giving files away takes root");
        return;
    }
    chown(&drop_in, Some(65534), None).expect("chown");
    refused("10-a.toml: ", "belongs to uid 65534: run chown root on it");
    chown(&drop_in, Some(0), None).expect("chown");
    chown(&drop_ins, Some(65534), None).expect("chown");
    refused("tether.toml.d: ", "belongs to uid 65534");
}
