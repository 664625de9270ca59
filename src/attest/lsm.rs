//! `lsm:*`: the label a Linux security module gave the process.
//!
//! `lsm:label` is what `/proc/PID/attr/current` says, as it says it. `lsm:apparmor` is the profile's name and holds only
//! while the profile is enforced. A label is as good as the policy that guards changes to it: AppArmor lets an
//! unconfined process change to any loaded profile unless the host forbids that.

use std::io;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::libc;

use super::{AttestError, Attestor, Findings, Subject, Wanted};
use crate::sys::procfs::ProcDir;

/// The kernel gives at most one page.
const MAX_BYTES: u64 = 8192;
const CURRENT: &str = "attr/current";
const APPARMOR: &str = "attr/apparmor/current";
const SMACK: &str = "attr/smack/current";

/// Attests `lsm:label`, `lsm:apparmor`, `lsm:selinux` and `lsm:smack`, as far as the kernel has these modules.
#[derive(Debug)]
pub struct Lsm {
    /// SELinux has no file of its own: `attr/current` is its label when it is active.
    selinux: bool,
}

impl Lsm {
    /// The modules of this host.
    pub fn of_host() -> Self {
        let selinux = match std::fs::read_to_string("/sys/kernel/security/lsm") {
            Ok(active) => active.trim().split(',').any(|name| name == "selinux"),
            Err(_) => std::path::Path::new("/sys/fs/selinux/enforce").exists(), // securityfs is not mounted
        };
        Self { selinux }
    }
}

impl Attestor for Lsm {
    fn kind(&self) -> &'static str {
        "lsm"
    }

    fn attest<'a>(&'a self, subject: &'a Subject, _wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        async {
            let labels = Labels {
                current: label(&subject.proc_dir, CURRENT)?,
                apparmor: label(&subject.proc_dir, APPARMOR)?,
                smack: label(&subject.proc_dir, SMACK)?,
            };
            Ok(self.findings(&labels))
        }
        .boxed()
    }
}

/// What the kernel says, each `None` where it has no such module.
#[derive(Default)]
struct Labels {
    current: Option<String>,
    apparmor: Option<String>,
    smack: Option<String>,
}

impl Lsm {
    fn findings(&self, labels: &Labels) -> Findings {
        let mut findings = Findings::of("lsm");
        if let Some(label) = &labels.current {
            findings.fact("label", label);
        }
        if let Some(label) = labels.current.as_ref().filter(|_| self.selinux) {
            findings.fact("selinux", label);
        }
        if let Some(label) = &labels.smack {
            findings.fact("smack", label);
        }
        match labels.apparmor.as_deref().map(apparmor_profile) {
            Some(Ok(profile)) => findings.fact("apparmor", profile),
            Some(Err(label)) => findings.note(format!("the AppArmor profile in `{label}` is not enforced")),
            None => {}
        }
        findings
    }
}

/// The name of an enforced profile in `NAME (MODE)`, or of none (`unconfined`); else the whole label.
fn apparmor_profile(label: &str) -> Result<&str, &str> {
    if label == "unconfined" {
        return Ok(label);
    }
    // A name may have blanks and brackets; the mode is always last.
    match label.strip_suffix(')').and_then(|label| label.rsplit_once(" (")) {
        Some((name, "enforce" | "kill")) => Ok(name),
        _ => Err(label),
    }
}

/// Reads a label; `None` when the kernel has no module that gives one there.
fn label(proc_dir: &ProcDir, file: &'static str) -> Result<Option<String>, AttestError> {
    match proc_dir.read(file, MAX_BYTES) {
        Ok(content) => decode(&content).ok_or(AttestError::Malformed { file }),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(AttestError::read(file, error)),
    }
}

/// `ENOENT`: no such module is built in. `EINVAL`, `EOPNOTSUPP`: it is, and is not active.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP))
}

/// The text before the closing zero byte or newline; empty means that there is no label. `None` when it is not text.
fn decode(content: &[u8]) -> Option<Option<String>> {
    let text = std::str::from_utf8(content).ok()?.trim_end_matches(['\0', '\n']);
    Some(Some(text).filter(|text| !text.is_empty()).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::super::Evidence;
    use super::*;

    fn facts(selinux: bool, labels: &Labels) -> (Vec<String>, usize) {
        let mut evidence = Evidence::default();
        evidence.add(Lsm { selinux }.findings(labels));
        assert_eq!(evidence.gaps, []);
        (evidence.selectors.iter().map(ToString::to_string).collect(), evidence.notes.len())
    }

    #[test]
    fn a_host_without_security_modules_has_no_labels_and_no_gaps() {
        assert_eq!(facts(false, &Labels::default()), (vec![], 0));
    }

    #[test]
    fn labels_go_to_the_module_that_gave_them() {
        let selinux = Labels { current: Some("system_u:system_r:httpd_t:s0".into()), ..Labels::default() };
        let both = ["lsm:label:system_u:system_r:httpd_t:s0", "lsm:selinux:system_u:system_r:httpd_t:s0"];
        assert_eq!(facts(true, &selinux).0, both);
        assert_eq!(facts(false, &selinux).0, both[..1]);
        let smack = Labels { current: Some("_".into()), smack: Some("_".into()), ..Labels::default() };
        assert_eq!(facts(false, &smack).0, ["lsm:label:_", "lsm:smack:_"]);
    }

    #[test]
    fn an_apparmor_profile_counts_only_while_it_is_enforced() {
        for (label, profile) in [
            ("docker-default (enforce)", Ok("docker-default")),
            ("/usr/bin/a b (x) (kill)", Ok("/usr/bin/a b (x)")),
            ("unconfined", Ok("unconfined")),
            ("docker-default (complain)", Err("docker-default (complain)")),
            ("docker-default (unconfined)", Err("docker-default (unconfined)")),
            ("docker-default", Err("docker-default")),
        ] {
            assert_eq!(apparmor_profile(label), profile);
        }
        let complains = Labels { apparmor: Some("a (complain)".into()), ..Labels::default() };
        assert_eq!(facts(false, &complains), (vec![], 1));
    }

    #[test]
    fn labels_end_at_the_zero_byte_or_newline_the_kernel_adds() {
        assert_eq!(decode(b"unconfined\n"), Some(Some("unconfined".into())));
        assert_eq!(decode(b"u:r:t:s0\0"), Some(Some("u:r:t:s0".into())));
        assert_eq!(decode(b"\0"), Some(None));
        assert_eq!(decode(b"\xff"), None);
    }
}
