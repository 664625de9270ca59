//! Makes `:authority` legal.
//!
//! INVARIANT: the server's dynamic table is a prefix in time of the client's. Until the first illegal authority the
//! server sees the client's blocks byte for byte, so both tables are equal, and the decoder here mirrors them. From
//! then on every block is written anew using only the static table and literals without indexing. Such a block neither
//! changes the server's table nor reads it: that table is frozen, whatever it holds, and the client's goes its own way
//! in the decoder here. Going back to the client's own blocks would let them refer to entries the server never saw, so
//! that never happens. Size updates of the client end here too: the server's table stays below the default it offers.

use http::uri::Authority;

use super::frame::{FrameHead, MAX_PAYLOAD, flag, kind};
use super::hpack::{Decoder, Field, Form, HpackError, encode_without_indexing};
use super::recycle;
use super::scan::BlockHead;

/// What an illegal authority becomes.
const REPLACEMENT: &[u8] = b"localhost";
/// The longest legal authority remembered, to judge it once per connection and not once per request.
const MAX_REMEMBERED: usize = 256;

/// What becomes of a header block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client's own bytes are good.
    Pass,
    /// [`AuthorityGuard::write_block`] has what goes to the server instead.
    Rewritten,
}

/// Follows the header blocks of one connection.
#[derive(Debug)]
pub(super) struct AuthorityGuard {
    decoder: Decoder,
    rewriting: bool,
    /// The last authority found legal.
    known_legal: Option<Vec<u8>>,
    rewritten: Vec<u8>,
}

impl AuthorityGuard {
    pub(super) fn new() -> Self {
        Self { decoder: Decoder::new(), rewriting: false, known_legal: None, rewritten: Vec::new() }
    }

    /// Decodes a compressed block and decides about it.
    pub(super) fn judge(&mut self, fragment: &[u8]) -> Result<Verdict, HpackError> {
        let Self { decoder, rewriting, known_legal, rewritten } = self;
        let fields = decoder.decode(fragment)?;
        *rewriting |= fields.iter().any(|field| is_illegal(field, known_legal));
        if !*rewriting {
            return Ok(Verdict::Pass);
        }
        recycle(rewritten);
        for field in fields.iter() {
            let illegal = is_illegal(field, known_legal);
            encode_without_indexing(if illegal { replaced(field) } else { field }, rewritten);
        }
        Ok(Verdict::Rewritten)
    }

    /// Appends the rewritten block as frames. END_STREAM is kept. Padding goes, and so does the priority signal, which
    /// RFC 9113 section 5.3.2 deprecates and our server ignores.
    pub(super) fn write_block(&self, head: BlockHead, out: &mut Vec<u8>) {
        let mut rest = self.rewritten.as_slice();
        let mut kind = kind::HEADERS;
        let mut flags = if head.end_stream { flag::END_STREAM } else { 0 };
        loop {
            let (payload, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            flags |= if later.is_empty() { flag::END_HEADERS } else { 0 };
            out.extend_from_slice(&FrameHead { length: payload.len(), kind, flags, stream: head.stream }.bytes());
            out.extend_from_slice(payload);
            if later.is_empty() {
                return;
            }
            (rest, kind, flags) = (later, kind::CONTINUATION, 0);
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.decoder.footprint() + self.known_legal.as_ref().map_or(0, Vec::capacity) + self.rewritten.capacity()
    }
}

/// Whether `field` says for whom the request is, in a form that is no URI authority. The server asks the same of the
/// same type, so what passes here passes there.
fn is_illegal(field: Field<'_>, known_legal: &mut Option<Vec<u8>>) -> bool {
    if !matches!(field.name, b":authority" | b"host") || known_legal.as_deref() == Some(field.value) {
        return false;
    }
    if Authority::try_from(field.value).is_err() {
        return true;
    }
    if field.value.len() <= MAX_REMEMBERED {
        *known_legal = Some(field.value.to_vec());
    }
    false
}

/// `field` for `localhost`.
fn replaced(field: Field<'_>) -> Field<'_> {
    let form = match field.form {
        // The bare static entries of both names have an empty value, which is illegal too.
        Form::Static(_) => Form::Literal,
        form => form,
    };
    Field { value: REPLACEMENT, form, ..field }
}
