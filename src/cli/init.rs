//! `tether init`: from an installed package to an agent that answers.
//!
//! What can be wrong is found out before anything is written. Then every file is put in place whole, and only where there is
//! none: what is there is kept, whoever made it. So a run that was cut short is finished by the next one, and one more
//! changes nothing.

mod ask;
mod entry;
mod programs;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use self::entry::FirstEntry;
use self::programs::{Program, Unusable};
use super::args::InitArgs;
use super::failure::{Exit, Failure};
use super::output::{Text, Tone};
use super::{Context, Host, within};
use crate::authority::keys::KeyStore;
use crate::base::durable;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::client::{ClientError, Endpoint, channel, with_header};
use crate::config::{self, Config, Loaded, Mistakes, Origin, Place, Source};
use crate::id::TrustDomain;
use crate::sys::harden::Hardening;

/// What the first set-up writes below the configuration's and the entries' directories.
const FILE_NAME: &str = "10-init.toml";
/// Readable by everyone: there is no secret in it.
const PUBLIC: u32 = 0o644;
/// What the unit of the agent loads: the key that wraps the keys of authorities.
const CREDENTIAL: &str = "tether.key-wrapping-key";
/// Where systemd looks for encrypted credentials that units name.
const CREDENTIAL_STORE: &str = "/etc/credstore.encrypted";
const WRAPPING_KEY: &str = "wrapping key";
/// The units of the package, in the order in which they are started.
const UNITS: [&str; 2] = ["tether-agent.socket", "tether-agent.service"];
const UNCHANGED: &str = "nothing was changed";
const START_BY_HAND: &str = "systemctl enable --now tether-agent.socket tether-agent.service";

/// What became of one part of the set-up.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    outcome: Outcome,
    what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// It was made now.
    Made,
    /// It was there, and is as it was.
    Kept,
    /// It was not asked for, or is nothing for this host.
    LeftOut,
    /// It cannot be had here, and something is weaker without it.
    Weaker,
}

#[derive(Debug, Serialize)]
struct Document {
    trust_domain: TrustDomain,
    steps: Vec<Step>,
    ready: bool,
    /// The commands that come next.
    next: Vec<&'static str>,
}

impl Document {
    fn changed_nothing(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Made)
    }
}

pub(super) fn run(args: InitArgs, context: &mut Context) -> Result<(), Failure> {
    if context.host.uid != 0 {
        return Err(Failure::new(
            Exit::Usage,
            "this sets up the whole host, for which it must be root: run it again with sudo; to try tether as you are, \
             there is `tether agent run --dev`",
        ));
    }
    // The key-wrapping key passes through.
    Hardening::of_command();
    let present = present_domain(&context.host)?;
    let mut args = args;
    let trust_domain = match (&present, args.trust_domain.take()) {
        (Some((present, origin)), Some(wanted)) if *present != wanted => return Err(another(present, origin, &wanted)),
        (Some((present, _)), _) => present.clone(),
        (None, Some(wanted)) => wanted,
        (None, None) => ask::trust_domain(context)?,
    };
    let config = with_domain(&context.host, &trust_domain)?;
    let entry = entry::plan(&args, &config, &context.host)?;

    let was_there = present.is_some();
    let mut steps = Steps { context, done: Vec::new() };
    steps.take(configuration(&trust_domain, present.map(|(_, origin)| origin), &steps.context.host)?)?;
    steps.take(wrapping_key(&config, &steps.context.host)?)?;
    let is_given = !matches!(entry, FirstEntry::None(Outcome::LeftOut, _));
    steps.take(entry.put()?)?;
    let started = start(&args, &steps.context.host)?;
    let ready = started.outcome != Outcome::LeftOut;
    if ready {
        let endpoint = Endpoint::Unix(steps.context.host.path(&config.listen.workload));
        steps.context.wait(async |_| until_ready(&endpoint).await)?;
    }
    steps.take(started)?;
    let Steps { context, done } = steps;
    let mut next = Vec::new();
    if !ready {
        next.push(if args.no_start { START_BY_HAND } else { "tether agent run" });
    } else if was_there && done.iter().any(|step| step.step == WRAPPING_KEY && step.outcome == Outcome::Made) {
        next.push("systemctl restart tether-agent  # which wraps the keys it has");
    }
    next.push(if is_given { "tether fetch x509" } else { "tether entry create --help" });
    finish(Document { trust_domain, steps: done, ready, next }, context)
}

/// Says each step when it is done: a person sees where it got to.
struct Steps<'a> {
    context: &'a mut Context,
    done: Vec<Step>,
}

impl Steps<'_> {
    fn take(&mut self, step: Step) -> Result<(), Failure> {
        let output = &mut self.context.output;
        if !output.is_json() {
            let (tone, word) = match step.outcome {
                Outcome::Made => (Tone::Good, "made    "),
                Outcome::Kept => (Tone::Plain, "kept    "),
                Outcome::LeftOut => (Tone::Plain, "left out"),
                Outcome::Weaker => (Tone::Weak, "weaker  "),
            };
            output.line(Text::toned(tone, word).then(format!("  {:<13}  {}", step.step, step.what)))?;
        }
        self.done.push(step);
        Ok(())
    }
}

/// The configuration files of this host and nothing else: the environment of whoever calls is not the agent's.
fn source(host: &Host) -> Source {
    let file = host.path(Path::new(config::SYSTEM_FILE));
    let has_drop_ins = |dir: PathBuf| dir.read_dir().is_ok_and(|mut files| files.next().is_some());
    let is_there = file.exists() || has_drop_ins(config::drop_in_dir(&file));
    Source { file: is_there.then_some(file), ..Source::default() }
}

/// The trust domain that this host has, and where it is written.
fn present_domain(host: &Host) -> Result<Option<(TrustDomain, Origin)>, Failure> {
    match source(host).load() {
        Ok(loaded) => Ok(Some((loaded.config.trust_domain.clone(), loaded.origin("trust_domain").clone()))),
        Err(Mistakes(mut mistakes)) => {
            mistakes.retain(|mistake| mistake.place != Place::Setting("trust_domain".to_owned()));
            if mistakes.is_empty() { Ok(None) } else { Err(Mistakes(mistakes).into()) }
        }
    }
}

fn another(present: &TrustDomain, origin: &Origin, wanted: &TrustDomain) -> Failure {
    Failure::new(
        Exit::Failure,
        format!(
            "this host is in the trust domain `{present}` ({origin}) and stays there: in `{wanted}` every SPIFFE ID of it \
             would be another one, its entries would be refused, and nobody who trusts it today would trust it. Nothing \
             was changed. If that is what you want, change `trust_domain` and the entries by hand, and restart the agent"
        ),
    )
}

/// The configuration as it will be. Mistakes in it are found before anything is written.
fn with_domain(host: &Host, trust_domain: &TrustDomain) -> Result<Config, Failure> {
    let flags = vec![("trust_domain".to_owned(), trust_domain.to_string())];
    let Loaded { config, .. } = Source { flags, ..source(host) }.load()?;
    Ok(config)
}

fn configuration(trust_domain: &TrustDomain, present: Option<Origin>, host: &Host) -> Result<Step, Failure> {
    let step = |outcome, place: &dyn std::fmt::Display| Step {
        step: "configuration",
        outcome,
        what: format!("trust domain `{trust_domain}`, in {place}"),
    };
    if let Some(origin) = present {
        return Ok(step(Outcome::Kept, &origin));
    }
    let dir = config::drop_in_dir(&host.path(Path::new(config::SYSTEM_FILE)));
    let path = dir.join(FILE_NAME);
    let text = format!(
        "# Made by `tether init`, which does not touch it again. Settings that stand here count over those of tether.toml.\n\
         trust_domain = \"{trust_domain}\"\n"
    );
    put(&path, text.as_bytes(), PUBLIC, 0o755)?;
    Ok(step(Outcome::Made, &path.display()))
}

/// Puts a file in place where there is none; whether there was none.
fn put(path: &Path, content: &[u8], mode: u32, dir_mode: u32) -> Result<bool, Failure> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(missing).collect();
    for (depth, dir) in above.into_iter().enumerate().rev() {
        durable::shared_dir(dir, if depth == 0 { dir_mode } else { 0o755 })?;
    }
    Ok(durable::create(path, content, mode)?)
}

/// The key that wraps the keys of authorities, sealed by systemd so that a copy of the disk is of no use elsewhere.
fn wrapping_key(config: &Config, host: &Host) -> Result<Step, Failure> {
    let step = |outcome, what: String| Step { step: WRAPPING_KEY, outcome, what };
    let path = host.path(Path::new(CREDENTIAL_STORE)).join(CREDENTIAL);
    if path.exists() {
        return Ok(step(Outcome::Kept, path.display().to_string()));
    }
    let keys = host.path(&config.state_dir).join("keys");
    if KeyStore::has_wrapped(&keys) {
        return Err(Failure::new(
            Exit::Failure,
            format!(
                "the keys in `{}` are wrapped by a key that is gone: put `{}` back from a backup, or restore the agent's \
                 state with `tether restore`; another one would not open them",
                keys.display(),
                path.display()
            ),
        ));
    }
    let weaker = |why: &str| {
        let what = format!("the keys of authorities will be plain files of mode 0600: {why}");
        step(Outcome::Weaker, what)
    };
    if !runs_systemd(host) {
        return Ok(weaker("systemd does not run here, which would hand a key to the agent"));
    }
    let Some(program) = Program::find("systemd-creds", host) else {
        return Ok(weaker("there is no systemd-creds (part of systemd since 250) to seal a key for this host"));
    };
    // With a TPM systemd binds it to PCR 7, the state of Secure Boot, unless it is told otherwise. That cannot be told here: bound
    // to no PCR (`--tpm2-pcrs=`), systemd 252 seals what it then cannot open. So a change of Secure Boot's keys makes the key
    // useless, which docs/operations.md says what to do about, and so does whoever boots something else without Secure Boot.
    let secret = Secret::new(Entropy::system().bytes::<32>().to_vec());
    let name = format!("--name={CREDENTIAL}");
    let sealed = match program.run(&["encrypt", &name, "-", "-"], secret.expose()) {
        Ok(sealed) => sealed,
        Err(Unusable(why)) => return Ok(weaker(&format!("systemd-creds cannot seal a key: {why}"))),
    };
    let with = match program.run(&["has-tpm2", "--quiet"], &[]) {
        Ok(_) => "sealed with this host's TPM and its state of Secure Boot: keep a backup with a passphrase",
        Err(_) => "sealed with this host's key, which systemd keeps on its disk: there is no TPM",
    };
    let outcome = if put(&path, &sealed, 0o600, 0o700)? { Outcome::Made } else { Outcome::Kept };
    Ok(step(outcome, format!("{}, {with}", path.display())))
}

/// sd_booted(3).
fn runs_systemd(host: &Host) -> bool {
    host.path(Path::new("/run/systemd/system")).exists()
}

/// Starts the agent, now and with the host. Returns when systemd says that it started.
fn start(args: &InitArgs, host: &Host) -> Result<Step, Failure> {
    let step = |outcome, what: String| Step { step: "agent", outcome, what };
    if args.no_start {
        return Ok(step(Outcome::LeftOut, format!("not started; start it with `{START_BY_HAND}`")));
    }
    if !runs_systemd(host) {
        let what = "not started: systemd does not run here; start it with `tether agent run`, in the background";
        return Ok(step(Outcome::LeftOut, what.to_owned()));
    }
    let places = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    let has_unit = |unit: &&str| places.iter().any(|place| host.path(Path::new(place)).join(unit).exists());
    let (Some(systemctl), true) = (Program::find("systemctl", host), UNITS.iter().all(has_unit)) else {
        let units = UNITS.join(" and ");
        let what =
            format!("not started: {units} are not there, install the package; or start it with `tether agent run`");
        return Ok(step(Outcome::LeftOut, what));
    };
    // Each by itself: of several it is enough for systemctl that it holds for one.
    let holds = |what: &str| UNITS.iter().all(|unit| systemctl.run(&[what, "--quiet", unit], &[]).is_ok());
    if holds("is-enabled") && holds("is-active") {
        return Ok(step(Outcome::Kept, "runs, is ready, and starts with the host".to_owned()));
    }
    let mut command = vec!["enable", "--now"];
    command.extend(UNITS);
    systemctl.run(&command, &[]).map_err(|Unusable(why)| {
        let look = "see `systemctl status tether-agent` and `journalctl -u tether-agent`, and run `tether init` again when it \
                    is mended";
        Failure::new(Exit::Failure, format!("the agent does not start: {why}")).and([look])
    })?;
    Ok(step(Outcome::Made, "started, ready, and started again with the host".to_owned()))
}

/// Waits for the agent's word that every part of it is ready.
async fn until_ready(endpoint: &Endpoint) -> Result<(), Failure> {
    let not_ready = || Failure::new(Exit::Unreachable, "the agent runs and is not ready; `tether status` says why");
    let failed = |status: tonic::Status| Failure::from(ClientError::from_status(endpoint, &status));
    let mut client = HealthClient::new(with_header(channel(endpoint)));
    let serving = async {
        let mut changes = client.watch(HealthCheckRequest::default()).await.map_err(failed)?.into_inner();
        while let Some(change) = changes.message().await.map_err(failed)? {
            if change.status() == ServingStatus::Serving {
                return Ok(());
            }
        }
        Err(not_ready())
    };
    within(serving, endpoint).await.map_err(|_| not_ready())?
}

fn finish(document: Document, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&document);
    }
    if document.changed_nothing() {
        context.output.line("")?;
        context.output.line(UNCHANGED)?;
    }
    context.output.line("")?;
    context.output.line("next:")?;
    for command in &document.next {
        context.output.line(format!("  {command}"))?;
    }
    Ok(())
}
