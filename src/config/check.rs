//! What must hold between settings. Each rule names the setting to change.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::{AuthorityKind, Config};
use crate::attest::container::Parent;
use crate::bundle::oidc::IssuerUrl;
use crate::user::fetch::Endpoint;
use crate::user::{IssuerSettings, KeySource};

/// The longest path a Unix socket address holds, in bytes (unix(7): `sun_path` has 108 with the final zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The broken rules: the setting's whole name and what is wrong with it.
pub(super) fn mistakes(config: &Config, is_set: &dyn Fn(&str) -> bool) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut rule = |holds: bool, path: &'static str, message: &str| {
        if !holds {
            found.push((path, message.to_owned()));
        }
    };

    rule(
        is_set("trust_domain"),
        "trust_domain",
        "it is required: run `tether init`, or write for example `trust_domain = \"example.org\"` at the top of the file",
    );
    authority(config, &mut rule);
    lifetimes(config, &mut rule);
    sockets(config, &mut rule);
    limits(config, &mut rule);
    secrets(config, &mut rule);
    issuers(config, &mut rule);
    audit(config, &mut rule);
    containers(config, &mut rule);
    rule(
        config.sessions.launchers.iter().all(|path| path.starts_with('/')),
        "sessions.launchers",
        "a path is absolute, or it could be any program",
    );
    let loopback = config.http.address.is_none_or(|address| address.ip().is_loopback());
    rule(
        loopback || config.http.allow_remote,
        "http.address",
        "other hosts can reach it, and the answers need no authentication; use 127.0.0.1, or set http.allow_remote",
    );
    for (node, url) in config.sessions.nodes.iter() {
        let usable = Endpoint::parse(url).is_ok_and(|endpoint| endpoint.is_secure());
        let why =
            format!("`{node}` is asked at `{url}`, which is no `https://` URL such as https://node.example.org:9466");
        rule(usable, "sessions.nodes", &why);
    }
    found
}

fn authority(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let authority = &config.authority;
    match authority.kind {
        AuthorityKind::Disk => {
            rule(authority.cert_file.is_some(), "authority.cert_file", "kind \"disk\" needs it");
            rule(authority.key_file.is_some(), "authority.key_file", "kind \"disk\" needs it");
        }
        AuthorityKind::Embedded => {
            let unread = "only kind \"disk\" reads it; set authority.kind or leave it out";
            rule(authority.cert_file.is_none(), "authority.cert_file", unread);
            rule(authority.key_file.is_none(), "authority.key_file", unread);
            rule(authority.bundle_file.is_none(), "authority.bundle_file", unread);
        }
    }
    if let Some(Err(invalid)) = authority.jwt_issuer.as_deref().map(IssuerUrl::parse) {
        rule(false, "authority.jwt_issuer", &invalid.to_string());
    }
}

fn lifetimes(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let authority = &config.authority;
    let second = Duration::from_secs(1);
    rule(config.svid.x509_ttl >= second, "svid.x509_ttl", "it is at least 1s");
    rule(config.svid.jwt_ttl >= second, "svid.jwt_ttl", "it is at least 1s");
    // A signing CA signs during the first half of its life, so that what it signs ends before it does.
    rule(config.svid.x509_ttl <= authority.ca_ttl / 2, "svid.x509_ttl", "it is at most half of authority.ca_ttl");
    rule(authority.ca_ttl <= authority.root_ttl / 2, "authority.ca_ttl", "it is at most half of authority.root_ttl");
    rule(
        config.svid.jwt_ttl <= authority.jwt_key_ttl / 2,
        "svid.jwt_ttl",
        "it is at most half of authority.jwt_key_ttl",
    );
    let shortest = authority.ca_ttl.min(authority.jwt_key_ttl);
    // A successor is prepared at a third of a life and takes over at half of it.
    rule(
        authority.propagation <= shortest / 6,
        "authority.propagation",
        "it is at most a sixth of authority.ca_ttl and of authority.jwt_key_ttl",
    );
    rule(
        config.jwt_propagation() <= authority.jwt_key_ttl / 6,
        "authority.jwt_propagation",
        "it is at most a sixth of authority.jwt_key_ttl",
    );
}

fn sockets(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let fits = |path: &Path| path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH_BYTES;
    let too_long = "a socket's path has at most 107 bytes";
    rule(fits(&config.listen.workload), "listen.workload", too_long);
    rule(fits(&config.listen.admin), "listen.admin", too_long);
    if let Some(credentials) = &config.listen.credentials {
        rule(fits(credentials), "listen.credentials", too_long);
        rule(credentials.is_absolute(), "listen.credentials", "systemd takes an absolute path alone for a socket");
        rule(
            config.listen.workload.parent() != credentials.parent(),
            "listen.credentials",
            "it shares a directory with listen.workload, which containers mount; put it into another one",
        );
    }
    rule(
        config.listen.workload.parent() != config.listen.admin.parent(),
        "listen.admin",
        "it shares a directory with listen.workload, which containers mount; put it into another one",
    );
}

fn secrets(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let section = &config.sds;
    let names = [
        ("sds.default_svid_name", &section.default_svid_name),
        ("sds.default_bundle_name", &section.default_bundle_name),
        ("sds.default_all_bundles_name", &section.default_all_bundles_name),
    ];
    for (number, (path, name)) in names.iter().enumerate() {
        rule(!name.is_empty(), path, "it is empty, which names nothing");
        rule(!name.starts_with("spiffe://"), path, "SPIFFE IDs have a meaning of their own");
        let is_taken = names[..number].iter().any(|(_, other)| other == name);
        rule(!is_taken, path, "another of these names is the same");
    }
}

fn issuers(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let issuers = &config.sessions.issuers;
    let is_secure = |(url, issuer): (&String, &IssuerSettings)| {
        let keys = !matches!(&issuer.keys, KeySource::Url(keys) if !keys.is_secure());
        url.starts_with("https://") && keys
    };
    rule(
        config.dev || issuers.iter().all(is_secure),
        "sessions.issuers",
        "without --dev every URL begins with `https://`: any user of this host could listen at a plain one",
    );
    let ourselves = config.authority.jwt_issuer.as_ref().is_some_and(|url| issuers.contains_key(url));
    rule(
        !ourselves,
        "sessions.issuers",
        "authority.jwt_issuer is among them: our own tokens are of workloads, not users",
    );
}

fn audit(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let section = &config.audit;
    rule(section.rotate >= super::ByteSize::kib(64), "audit.rotate", "it is at least 64KiB");
    let two = "it is at least 2: the record that says what was removed must not be removed with it";
    rule(section.keep >= 2, "audit.keep", two);
    let hour = Duration::from_secs(60 * 60);
    rule(section.keep_for.is_none_or(|keep_for| keep_for >= hour), "audit.keep_for", "it is at least 1h");
}

fn containers(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let (docker, podman) = (&config.attest.docker, &config.attest.podman);
    let absolute = "it is an absolute path, without `unix://`";
    let is_path = |socket: &Option<std::path::PathBuf>| socket.as_ref().is_none_or(|path| path.is_absolute());
    rule(is_path(&docker.socket), "attest.docker.socket", absolute);
    rule(is_path(&podman.socket), "attest.podman.socket", absolute);
    for (name, parents) in [
        ("attest.docker.cgroup_parents", &docker.cgroup_parents),
        ("attest.podman.cgroup_parents", &podman.cgroup_parents),
    ] {
        for invalid in parents.iter().filter_map(|parent| parent.parse::<Parent>().err()) {
            rule(false, name, &invalid.to_string());
        }
    }
}

fn limits(config: &Config, rule: &mut impl FnMut(bool, &'static str, &str)) {
    let limits = &config.limits;
    let zero = "0 would refuse everyone";
    rule(limits.connections > 0, "limits.connections", zero);
    rule(limits.connections_per_uid > 0, "limits.connections_per_uid", zero);
    rule(limits.streams_per_connection > 0, "limits.streams_per_connection", zero);
    rule(limits.calls > 0, "limits.calls", zero);
    rule(limits.calls_per_uid > 0, "limits.calls_per_uid", zero);
    rule(limits.attestations > 0, "limits.attestations", zero);
    rule(limits.attestations_per_uid > 0, "limits.attestations_per_uid", zero);
    rule(!limits.half_open.is_zero(), "limits.half_open", zero);
    rule(!config.attest.deadline.is_zero(), "attest.deadline", zero);
    let smallest = super::ByteSize::kib(1);
    rule(limits.workload_message >= smallest, "limits.workload_message", "it is at least 1KiB");
    rule(limits.admin_message >= smallest, "limits.admin_message", "it is at least 1KiB");
}
