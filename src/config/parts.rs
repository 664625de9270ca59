//! What each part of the agent takes from the configuration.

use std::path::PathBuf;
use std::time::Duration;

use crate::api::{sds, serve};
use crate::attest::container;
use crate::audit;
use crate::authority::{self, DiskFiles};
use crate::base::quota::{Quota, Turns};
use crate::sys::Kernel;
use crate::{attest, ledger, peer, registry, session, user};

use super::{AuthorityKind, Config, KernelInterfaces, OnAuditFailure, SdsCrl};

/// The longest JWT-SVID an entry may ask for, unless the default lifetime is longer: whoever holds it can use it.
const LONGEST_JWT: Duration = Duration::from_secs(60 * 60);

/// Outside services look for new keys at least as often as this.
const OUTSIDE_CACHES: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// What registration entries must obey.
    pub fn entry_rules(&self) -> registry::Rules {
        registry::Rules {
            trust_domain: self.trust_domain.clone(),
            owner_required: !self.dev,
            max_x509_ttl: self.authority.ca_ttl / 2,
            max_jwt_ttl: self.longest_jwt(),
        }
    }

    /// How long a new key is published before it signs JWT-SVIDs.
    pub(super) fn jwt_propagation(&self) -> Duration {
        let section = &self.authority;
        let usual = section.jwt_issuer.as_ref().map(|_| OUTSIDE_CACHES.min(section.jwt_key_ttl / 6));
        section.jwt_propagation.or(usual).unwrap_or(section.propagation).max(section.propagation)
    }

    fn longest_jwt(&self) -> Duration {
        LONGEST_JWT.max(self.svid.jwt_ttl).min(self.authority.jwt_key_ttl / 2)
    }

    /// How authorities of the node with this id are made; `None` when kind "disk" has no files, which
    /// [`super::Source::load`] refuses.
    pub fn authority(&self, node: &str) -> Option<authority::Config> {
        let section = &self.authority;
        let source = match section.kind {
            AuthorityKind::Embedded => authority::Source::Embedded,
            AuthorityKind::Disk => authority::Source::Disk(DiskFiles {
                certificate: section.cert_file.clone()?,
                key: section.key_file.clone()?,
                bundle: section.bundle_file.clone(),
            }),
        };
        Some(authority::Config {
            domain: self.trust_domain.clone(),
            node: node.to_owned(),
            source,
            key_type: section.key_type,
            jwt_key_type: section.jwt_key_type.unwrap_or(section.key_type),
            jwt_issuer: section.jwt_issuer.clone(),
            root_ttl: section.root_ttl,
            ca_ttl: section.ca_ttl,
            jwt_key_ttl: section.jwt_key_ttl,
            propagation: section.propagation,
            jwt_propagation: self.jwt_propagation(),
            longest_jwt: self.longest_jwt(),
        })
    }

    /// How processes are examined.
    pub fn attestation(&self) -> attest::Config {
        let section = &self.attest;
        // What the parts of one attestor wait for ends before the whole does, which would cost all of its selectors.
        let patience = |usual: Duration| usual.min(section.deadline * 3 / 4);
        let (unix, systemd) = (attest::UnixConfig::default(), attest::SystemdConfig::default());
        attest::Config {
            deadline: section.deadline,
            unix: attest::UnixConfig {
                max_hash_bytes: section.unix.max_hash.bytes(),
                name_cache: section.unix.name_cache,
                patience: patience(unix.patience),
            },
            systemd: attest::SystemdConfig {
                address: section.systemd.bus_address.clone(),
                patience: patience(systemd.patience),
                ..systemd
            },
            docker: self.engine(&section.docker.socket, &section.docker.cgroup_parents),
            podman: self.engine(&section.podman.socket, &section.podman.cgroup_parents),
        }
    }

    fn engine(&self, socket: &Option<PathBuf>, parents: &[String]) -> container::Config {
        container::Config {
            socket: socket.clone(),
            // What is no place was refused when the configuration was read.
            parents: parents.iter().filter_map(|parent| parent.parse().ok()).collect(),
            // As for the others: what is waited for ends before the whole does.
            patience: self.attest.deadline * 3 / 4,
        }
    }

    /// What sessions may be.
    pub fn session_settings(&self) -> session::Settings {
        let section = &self.sessions;
        session::Settings {
            default_ttl: section.default_ttl.min(section.max_ttl),
            max_ttl: section.max_ttl,
            max_depth: section.max_depth,
            per_uid: index(section.per_uid),
            total: index(section.total),
            introspect_url: section.introspect_url.clone(),
        }
    }

    /// How users are proven on the node with this id.
    pub fn users(&self, node: &str) -> user::Config {
        let defaults = user::Config::of_node(&self.trust_domain, node);
        user::Config {
            issuers: self.sessions.issuers.clone(),
            bus: self.attest.systemd.bus_address.clone(),
            name_cache: self.attest.unix.name_cache,
            ..defaults
        }
    }

    /// Who is believed about what it launches, and how that is measured.
    pub fn launches(&self) -> attest::LaunchConfig {
        let own = || std::env::current_exe().into_iter().collect();
        let named = &self.sessions.launchers;
        let launchers = if named.is_empty() { own() } else { named.iter().map(PathBuf::from).collect() };
        let max_hash_bytes = self.attest.unix.max_hash.bytes();
        attest::LaunchConfig { launchers, max_hash_bytes, ..attest::LaunchConfig::default() }
    }

    /// How many attestations go on at one time.
    pub fn attestation_turns(&self) -> Turns {
        Turns::new(index(self.limits.attestations), index(self.limits.attestations_per_uid))
    }

    /// How many connections there may be.
    pub fn connection_limits(&self) -> peer::Limits {
        peer::Limits {
            connections: index(self.limits.connections),
            connections_per_uid: index(self.limits.connections_per_uid),
            half_open: self.limits.half_open,
        }
    }

    /// How much of the ledger one user may have.
    pub fn ledger_limits(&self) -> ledger::Limits {
        ledger::Limits {
            credentials_per_uid: index(self.limits.credentials_per_uid),
            certificates_per_uid: index(self.limits.certificates_per_uid),
        }
    }

    /// Where the audit log is, and how much of it is kept.
    pub fn audit_log(&self) -> audit::Settings {
        let section = &self.audit;
        audit::Settings {
            dir: section.dir.clone().unwrap_or_else(|| self.state_dir.join("audit")),
            head: self.state_dir.join("audit.head"),
            rotate: section.rotate.bytes(),
            keep: index(section.keep),
            keep_for: section.keep_for,
            on_failure: match section.on_failure {
                OnAuditFailure::Refuse => audit::OnFailure::Refuse,
                OnAuditFailure::Alarm => audit::OnFailure::Alarm,
            },
        }
    }

    /// How secrets are served to Envoy; `None` when they are not.
    pub fn sds(&self) -> Option<sds::Settings> {
        let section = &self.sds;
        section.enabled.then(|| sds::Settings {
            names: sds::Names {
                svid: section.default_svid_name.clone(),
                bundle: section.default_bundle_name.clone(),
                all_bundles: section.default_all_bundles_name.clone(),
            },
            crl: match section.crl {
                SdsCrl::Auto => sds::SendCrl::Auto,
                SdsCrl::Always => sds::SendCrl::Always,
                SdsCrl::Never => sds::SendCrl::Never,
            },
        })
    }

    /// How many calls on the workload socket may be open.
    pub fn calls(&self) -> Quota {
        Quota::new(index(self.limits.calls), index(self.limits.calls_per_uid))
    }

    /// The limits of one connection.
    pub fn server_limits(&self) -> serve::Limits {
        serve::Limits {
            streams_per_connection: self.limits.streams_per_connection,
            workload_message: self.limits.workload_message.as_usize(),
            admin_message: self.limits.admin_message.as_usize(),
        }
    }

    /// The kernel interfaces to use.
    pub fn kernel(&self) -> Kernel {
        match self.attest.peer.kernel {
            KernelInterfaces::Auto => Kernel::probe(),
            KernelInterfaces::Baseline => Kernel::baseline(),
        }
    }
}

fn index(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
