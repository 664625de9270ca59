use nix::sys::signal::Signal;

use super::*;

fn read_text(text: &str) -> Result<Migrated, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("helper.conf");
    std::fs::write(&path, text).expect("written");
    read(&path, Layout::Swap).map_err(|mistake| mistake.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

fn files(output: &Output) -> Vec<(&str, u32)> {
    output.files.iter().map(|file| (file.name.as_str(), file.mode)).collect()
}

/// As its README shows it.
const EXAMPLE: &str = r#"
agent_address = "/tmp/spire-agent/public/api.sock"
cmd = "ghostunnel"
cmd_args = "server --listen localhost:8002 --allow-uri-san spiffe://example.org/Database"
cert_dir = "certs"
renew_signal = "SIGUSR1"
svid_file_name = "svid.pem"
svid_key_file_name = "svid_key.pem"
svid_bundle_file_name = "svid_bundle.pem"
jwt_svids = [{jwt_audience="your-audience",jwt_extra_audiences=["extra-1", "extra-2"], jwt_svid_file_name="jwt_svid.token"}]
jwt_bundle_file_name = "bundle.json"
cert_file_mode = 0444
key_file_mode = 0444
jwt_bundle_file_mode = 0444
jwt_svid_file_mode = 0444
"#;

#[test]
fn the_example_of_spiffe_helper_is_read_as_it_is() {
    let read = read_text(EXAMPLE).expect("read");
    assert_eq!(read.socket.as_deref(), Some("/tmp/spire-agent/public/api.sock"));
    assert!(!read.once);
    let expected = ["svid_key.pem", "svid.pem", "svid_bundle.pem", "bundle.json", "jwt_svid.token"];
    assert_eq!(files(&read.output), expected.map(|name| (name, 0o444)));
    let audiences: Vec<_> = read.output.audiences().collect();
    assert_eq!(audiences, [&["your-audience", "extra-1", "extra-2"].map(String::from).to_vec()]);
    let [Reload::Child { argv, signal: Some(Signal::SIGUSR1) }] = &*read.output.reloads else {
        panic!("{:?}", read.output.reloads)
    };
    assert_eq!(argv.len(), 6);
    // It is done, and said.
    assert_eq!(read.warnings.len(), 2, "{:?}", read.warnings);
    assert!(read.warnings[0].contains("svid_key.pem") && read.warnings[0].contains("readable by everybody"));
}

#[test]
fn each_key_means_what_it_means_there() {
    let three = "svid_file_name = \"c\"\nsvid_key_file_name = \"k\"\nsvid_bundle_file_name = \"b\"\n";
    let of = |text: &str| read_text(&format!("{three}{text}")).expect(text);
    assert_eq!(files(&of("").output), [("k", 0o600), ("c", 0o644), ("b", 0o644)]);
    assert!(of("daemon_mode = false\ncmd = \"x\"\n").output.reloads.is_empty());
    assert!(of("daemon_mode = false\n").once);
    assert!(of("include_federated_domains = true\n").output.federated_in_bundle);
    assert!(of("add_intermediates_to_bundle = true\n").output.intermediates_in_bundle);
    assert!(of("omit_expired = true\n").output.omit_expired);
    assert_eq!(of("hint = \"internal\"\n").output.choice, Choice::Hint("internal".to_owned()));
    let by_file = of("pid_file_name = \"/run/x.pid\"\nrenew_signal = \"SIGHUP\"\n").output.reloads;
    assert!(
        matches!(&*by_file, [Reload::Signal { signal: Signal::SIGHUP, pid_file, process: None }] if pid_file == Path::new("/run/x.pid"))
    );
    let health = of("health_checks {\n listener_enabled = true\n bind_port = 8081 }\n").warnings;
    assert!(health[0].contains("health_checks.listener_enabled"), "{health:?}");
    assert_eq!(of("certDir = \"former\"\n").output.directory(), Path::new("former"));
    let tokens = "jwt_svids = [{jwt_audience = \"a\"\n jwt_svid_file_name = \"t\"}]\n";
    assert_eq!(files(&read_text(tokens).expect("tokens alone").output), [("t", 0o600)]);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_column() {
    let three = "svid_file_name = \"c\"\nsvid_key_file_name = \"k\"\nsvid_bundle_file_name = \"b\"\n";
    for (text, expected) in [
        (format!("{three}cert_dirr = \"x\""), "helper.conf:4:1: `cert_dirr` is no key of spiffe-helper"),
        (format!("{three}health_checks {{ port = 1 }}"), "helper.conf:4:1: `health_checks.port` is no key"),
        (format!("{three}cert_dir = 1"), "helper.conf:4:1: `cert_dir` must be a text, and is a number"),
        (format!("{three}key_file_mode = 644"), "helper.conf:4:1: `key_file_mode` must be a mode of a file"),
        (format!("{three}key_file_mode = \"0600\""), "helper.conf:4:1: `key_file_mode` must be a mode of a file"),
        (format!("{three}cert_dir = x"), "helper.conf:4:12: `x` is no value"),
        (format!("{three}renew_signal = \"SIGWHAT\"\n"), "helper.conf: `SIGWHAT` is no signal"),
        (format!("{three}pid_file_name = \"/p\"\n"), "helper.conf: `pid_file_name` needs `renew_signal`"),
        ("svid_file_name = \"c\"\n".to_owned(), "helper.conf: `svid_file_name`, `svid_key_file_name` and"),
        ("cert_dir = \"c\"\n".to_owned(), "helper.conf: it names no file"),
        ("jwt_svids = [{jwt_audience = \"a\"}]\n".to_owned(), "helper.conf:1:1: each of `jwt_svids` needs"),
        (
            "jwt_svids = [{jwt_audience = \"a\", file = \"x\"}]".to_owned(),
            "helper.conf:1:1: `jwt_svids` has no key `file`",
        ),
        (three.replace("\"k\"", "\"../k\""), "helper.conf: `../k` is no name of a file"),
        (
            format!("{three}cmd = \"x\"\ncmd_args = \"a \\\"b\""),
            "helper.conf: `cmd_args`: a quotation mark is not closed",
        ),
    ] {
        let error = read_text(&text).expect_err(expected);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn arguments_are_split_at_blanks_outside_of_quotation_marks() {
    for (line, expected) in [
        ("", vec![]),
        ("-s reload", vec!["-s", "reload"]),
        ("  a   b ", vec!["a", "b"]),
        ("-c \"two words\" x", vec!["-c", "two words", "x"]),
        ("\"a \"\"b\"\" c\"", vec!["a \"b\" c"]),
        ("$HOME 'x y'", vec!["$HOME", "'x", "y'"]),
    ] {
        assert_eq!(words(line).expect(line), expected, "{line}");
    }
    for wrong in ["a\"b", "\"a\"b", "\"a"] {
        assert!(words(wrong).is_err(), "{wrong}");
    }
}
