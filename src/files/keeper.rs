//! Keeps one output: from what the agent hands out to files in their place and a program that knows.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use super::output::{Layout, Output};
use super::reload::{ReloadError, Teller};
use super::render::{Fingerprint, Material, RenderError, Rendered, fingerprint, render};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::durable::{Delivered, Delivery, DurableError};
use crate::base::entropy::Entropy;
use crate::base::files::aside;
use crate::client::export::{ExportWatch, Exports, X509Export};
use crate::client::{ClientError, JwtSvid};

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Tokens that live for seconds do not turn this into a busy loop.
const SHORTEST_RENEWAL: time::Duration = time::Duration::SECOND;

/// What happens to an output, for whoever runs this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A complete set is in force.
    InForce {
        /// Which output, by its number.
        output: usize,
        /// Of whom, and where.
        text: String,
        /// When the first of its documents ends.
        until: Option<OffsetDateTime>,
    },
    /// A program was told.
    Told {
        /// Which output.
        output: usize,
        /// What was done.
        text: String,
    },
    /// Something could not be done; it is tried again.
    Trouble {
        /// Which output.
        output: usize,
        /// What, and why.
        text: String,
    },
}

/// Why an output was not written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The agent gives nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be made.
    #[error("the content of the files cannot be made")]
    Render(#[from] RenderError),
    /// The files cannot be put in their place.
    #[error(transparent)]
    Place(#[from] DurableError),
    /// A program could not be told.
    #[error("the files are in place, and the program was not told")]
    Told(#[from] ReloadError),
}

/// Keeps one output fresh.
pub struct Keeper {
    number: usize,
    output: Arc<Output>,
    exports: Exports,
    delivery: Arc<Delivery>,
    clock: Clock,
    entropy: Entropy,
    x509: Option<X509Export>,
    /// In the order of the output's tokens.
    tokens: Vec<Option<JwtSvid>>,
    /// When each is fetched, next or again.
    due: Vec<OffsetDateTime>,
    in_force: Option<Fingerprint>,
    /// Programs, and whether each is still to be told.
    tellers: Vec<(Teller, bool)>,
}

impl Keeper {
    /// Takes the output's directory.
    ///
    /// # Errors
    /// The directory is not one that files are put into, or another writer has it.
    pub fn open(
        number: usize,
        output: Output,
        exports: Exports,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self, DurableError> {
        let delivery = Delivery::open(&output.directory, output.uid, output.gid)?;
        let tokens: Vec<_> = output.audiences().map(|_| None).collect();
        let tellers = output.reloads.iter().map(|how| (Teller::new(how.clone()), false)).collect();
        let due = vec![clock.now(); tokens.len()];
        let (delivery, output) = (Arc::new(delivery), Arc::new(output));
        Ok(Self { number, output, exports, delivery, clock, entropy, x509: None, tokens, due, in_force: None, tellers })
    }

    /// Writes the output, once, and tells its programs.
    ///
    /// # Errors
    /// The first thing that fails: nothing is tried again.
    pub async fn once(mut self) -> Result<Vec<Notice>, WriteError> {
        if self.output.needs_x509() {
            self.x509 = Some(self.exports.watch_x509(&self.output.choice).next().await?);
        }
        for number in 0..self.tokens.len() {
            self.fetch(number).await?;
        }
        let mut notices: Vec<Notice> = self.write().await?.into_iter().collect();
        for (teller, _) in &mut self.tellers {
            notices.push(Notice::Told { output: self.number, text: teller.tell().await? });
        }
        Ok(notices)
    }

    /// Keeps the output fresh until the drain. What `again` counts makes everything be written and told anew.
    pub async fn keep(
        mut self,
        mut again: watch::Receiver<u64>,
        notices: mpsc::UnboundedSender<Notice>,
        mut drain: drain::Watcher,
    ) {
        let mut watch = self.output.needs_x509().then(|| self.exports.watch_x509(&self.output.choice));
        let mut tokens = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut retries = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut retry_at = None;
        let mut expires = None;
        again.mark_unchanged();
        loop {
            let next_token = self.due.iter().copied().min();
            let mut told_to_write = false;
            tokio::select! {
                biased;
                () = drain.draining() => break,
                changed = again.changed() => {
                    // Nobody asks any more.
                    if changed.is_err() { break }
                    (self.in_force, told_to_write) = (None, true);
                }
                state = next(&mut watch) => match state {
                    Ok(state) => (self.x509, told_to_write) = (Some(state), true),
                    Err(error) => self.trouble(&notices, &error.into()),
                },
                () = self.clock.sleep_until(next_token.unwrap_or(OffsetDateTime::UNIX_EPOCH)), if next_token.is_some() => {
                    match self.fetch_due().await {
                        Ok(()) => {
                            tokens.reset();
                            told_to_write = true;
                        }
                        Err(error) => {
                            let later = self.clock.now() + tokens.delay(&self.entropy);
                            self.due.iter_mut().for_each(|due| *due = (*due).max(later));
                            self.trouble(&notices, &error.into());
                        }
                    }
                }
                () = self.clock.sleep_until(retry_at.unwrap_or(OffsetDateTime::UNIX_EPOCH)), if retry_at.is_some() => {
                    told_to_write = true;
                }
                () = self.clock.sleep_until(expires.unwrap_or(OffsetDateTime::UNIX_EPOCH)), if expires.is_some() => {
                    expires = None;
                    let text = format!("what is in `{}` has expired, and nothing has come in its place", self.place());
                    self.tell_of(&notices, Notice::Trouble { output: self.number, text });
                }
                text = child_ended(&mut self.tellers) => {
                    self.tell_of(&notices, Notice::Trouble { output: self.number, text });
                }
            }
            if !told_to_write {
                continue;
            }
            let written = match self.write().await {
                Ok(Some(notice)) => {
                    if let Notice::InForce { until, .. } = &notice {
                        expires = *until;
                    }
                    self.tellers.iter_mut().for_each(|(_, pending)| *pending = true);
                    self.tell_of(&notices, notice);
                    true
                }
                Ok(None) => true,
                Err(error) => {
                    self.trouble(&notices, &error);
                    false
                }
            };
            // A command may take its time: the end of this does not wait for it.
            let told = tokio::select! {
                told = self.tell(&notices) => told,
                () = drain.draining() => break,
            };
            retry_at = match written && told {
                true => {
                    retries.reset();
                    None
                }
                false => Some(self.clock.now() + retries.delay(&self.entropy)),
            };
        }
        for (teller, _) in &mut self.tellers {
            teller.stop().await;
        }
    }

    /// Puts the files in force, if they are complete and anything in them has changed.
    async fn write(&mut self) -> Result<Option<Notice>, WriteError> {
        let material = Material { x509: self.x509.as_ref(), tokens: &self.tokens, now: self.clock.now() };
        let Some(fingerprint) = fingerprint(&self.output, material)? else { return Ok(None) };
        if self.in_force == Some(fingerprint) {
            return Ok(None);
        }
        let Some(files) = render(&self.output, material, &self.entropy)? else { return Ok(None) };
        let (delivery, layout) = (self.delivery.clone(), self.output.layout);
        aside(move || place(&delivery, layout, &files)).await?;
        self.in_force = Some(fingerprint);
        Ok(Some(Notice::InForce { output: self.number, text: self.summary(), until: self.ends() }))
    }

    /// Tells the programs that are to be told. Whether all of them have been.
    async fn tell(&mut self, notices: &mpsc::UnboundedSender<Notice>) -> bool {
        let mut all = true;
        for at in 0..self.tellers.len() {
            let (teller, pending) = &mut self.tellers[at];
            if !*pending {
                continue;
            }
            match teller.tell().await {
                Ok(text) => {
                    *pending = false;
                    self.tell_of(notices, Notice::Told { output: self.number, text });
                }
                Err(error) => {
                    all = false;
                    self.trouble(notices, &error.into());
                }
            }
        }
        all
    }

    async fn fetch_due(&mut self) -> Result<(), ClientError> {
        for number in 0..self.tokens.len() {
            if self.due[number] <= self.clock.now() {
                self.fetch(number).await?;
            }
        }
        Ok(())
    }

    async fn fetch(&mut self, number: usize) -> Result<(), ClientError> {
        let Some(audience) = self.output.audiences().nth(number) else { return Ok(()) };
        let token = self.exports.fetch_jwt(audience, &self.output.choice).await?;
        let now = self.clock.now();
        // Half of what is left, so that the next one is there well before this one ends.
        let half: time::Duration = (token.expires_at - now) / 2;
        self.due[number] = now + half.max(SHORTEST_RENEWAL);
        self.tokens[number] = Some(token);
        Ok(())
    }

    fn place(&self) -> std::path::Display<'_> {
        self.output.directory.display()
    }

    /// When the first of its documents ends.
    fn ends(&self) -> Option<OffsetDateTime> {
        let svid = self.x509.iter().map(|x509| x509.svid.chain.leaf().not_after());
        svid.chain(self.tokens.iter().flatten().map(|token| token.expires_at)).min()
    }

    fn summary(&self) -> String {
        let svid = self.x509.as_ref().map(|x509| {
            let leaf = x509.svid.chain.leaf();
            format!("`{}` with serial number {}", x509.svid.id, leaf.serial())
        });
        let tokens = match self.tokens.as_slice() {
            [] => None,
            [Some(token)] => Some(format!("a token of `{}`", token.id)),
            tokens => Some(format!("{} tokens", tokens.len())),
        };
        let what: Vec<String> = svid.into_iter().chain(tokens).collect();
        format!("wrote {} to `{}`", what.join(" and "), self.place())
    }

    fn trouble(&self, notices: &mpsc::UnboundedSender<Notice>, error: &WriteError) {
        let text = format!("`{}`: {}; trying again", self.place(), super::config::with_cause(error));
        self.tell_of(notices, Notice::Trouble { output: self.number, text });
    }

    fn tell_of(&self, notices: &mpsc::UnboundedSender<Notice>, notice: Notice) {
        // Without a listener there is nobody to tell.
        let _ = notices.send(notice);
    }
}

async fn next(watch: &mut Option<ExportWatch>) -> Result<X509Export, ClientError> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// The first end of something that was started to go on.
async fn child_ended(tellers: &mut [(Teller, bool)]) -> String {
    let ends = tellers.iter_mut().map(|(teller, _)| Box::pin(teller.ended()));
    let ends: Vec<_> = ends.collect();
    match ends.is_empty() {
        true => std::future::pending().await,
        false => futures_util::future::select_all(ends).await.0,
    }
}

/// Blocks.
fn place(delivery: &Delivery, layout: Layout, files: &[Rendered]) -> Result<(), DurableError> {
    let files: Vec<Delivered<'_>> = files
        .iter()
        .map(|file| Delivered { name: &file.name, content: file.content.expose(), mode: file.mode })
        .collect();
    match layout {
        Layout::Swap => delivery.swap(&files),
        Layout::Plain => delivery.replace_each(&files),
    }
}
