//! What is asked on a terminal when the command line does not say it.

use std::io::Read;

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::id::TrustDomain;

/// How often somebody may mistype.
const TRIES: usize = 3;
/// The longest line that is an answer.
const MAX_ANSWER_BYTES: usize = 1024;

/// The trust domain, from whoever sits at the terminal.
pub(super) fn trust_domain(context: &mut Context) -> Result<TrustDomain, Failure> {
    if !context.host.interactive {
        return Err(Failure::new(
            Exit::Usage,
            "no trust domain: name it, for example `tether init --trust-domain example.org`",
        ));
    }
    context.output.note(
        "The trust domain is the name in every SPIFFE ID, as in spiffe://example.org/billing: usually a DNS name that is",
    );
    context.output.note("yours. It is hard to change later: every identity of this host would be another one.");
    for _ in 0..TRIES {
        context.output.prompt("Trust domain: ");
        match line(&mut context.host.input).as_deref().map(TrustDomain::parse) {
            None => break,
            Some(Ok(trust_domain)) => return Ok(trust_domain),
            Some(Err(error)) => context.output.note(&format!("that is no trust domain: {error}")),
        }
    }
    Err(Failure::new(Exit::Usage, "no trust domain, and nothing was changed"))
}

/// One line, without what follows it; `None` at the end of input.
fn line(input: &mut impl Read) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_ANSWER_BYTES && input.read_exact(&mut byte).is_ok() {
        match byte {
            [b'\n'] => return Some(String::from_utf8_lossy(&line).trim().to_owned()),
            [byte] => line.push(byte),
        }
    }
    (!line.is_empty()).then(|| String::from_utf8_lossy(&line).trim().to_owned())
}
