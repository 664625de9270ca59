//! The frame-aware layer every connection passes through, as pure state machines over bytes.
//!
//! [`Inbound`] stands between the socket and the HTTP/2 server, [`Outbound`] between the server and the socket. Neither
//! does I/O, knows a clock, or learns who sent what: the I/O type around them does, and acts on what they report.
//!
//! # What it promises
//! - A request whose `:authority` (or `host`) is no URI authority reaches the server as one for `localhost`. gRPC
//!   clients on Unix sockets send the socket's path there, which RFC 9113 section 8.3.1 does not allow and the server
//!   refuses.
//! - The challenge, a PING with a secret payload, leaves in one piece with the server's first SETTINGS. Its answer is
//!   kept from the server and reported with the very read that held its last byte: whoever sent that read has read
//!   what we wrote to this connection.
//! - Every other byte passes unchanged and in order, and connections whose authorities are all legal pass unchanged
//!   whole. The result does not depend on how the bytes are cut into reads.
//! - Memory is bounded, and nothing is allocated per read once buffers have grown to what a connection needs.
//!
//! # What it does not
//! It is no HTTP/2 implementation: it refuses only what would leave it unsure about frame boundaries or about the
//! client's header compression (RFC 9113 sections 4 and 6.10, RFC 7541), and leaves all else to the server. The server
//! must keep SETTINGS_HEADER_TABLE_SIZE and SETTINGS_MAX_FRAME_SIZE at their defaults; [`Outbound`] refuses others.

mod authority;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod hpack;
mod inbound;
mod outbound;
mod scan;
#[cfg(test)]
mod tests;

pub use hpack::HpackError;
pub use inbound::{Event, Inbound, Passed, ReadOutcome};
pub use outbound::{Outbound, WriteAction};

/// Why a connection cannot go on. Its text is fit for the debug data of a GOAWAY frame: it holds nothing the peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes of the client are not the HTTP/2 preface (RFC 9113 section 3.4): it speaks something else.
    #[error("connection does not start with the HTTP/2 preface")]
    Preface,
    /// A frame is larger than 16384 bytes (RFC 9113 section 4.2).
    #[error("frame is larger than the limit")]
    FrameTooLarge,
    /// A frame stands between HEADERS and the end of its header block (RFC 9113 section 6.10).
    #[error("header block is interrupted by another frame")]
    BlockInterrupted,
    /// A CONTINUATION frame follows no open header block (RFC 9113 section 6.10).
    #[error("CONTINUATION without an open header block")]
    StrayContinuation,
    /// The client sent PUSH_PROMISE, which only servers may (RFC 9113 section 8.4).
    #[error("a client cannot send PUSH_PROMISE")]
    PushPromise,
    /// A HEADERS frame names stream 0 (RFC 9113 section 6.2).
    #[error("HEADERS without a stream")]
    HeadersWithoutStream,
    /// A HEADERS frame is too short for what its flags announce (RFC 9113 section 6.2).
    #[error("HEADERS frame is too short for its flags")]
    HeadersTooShort,
    /// A HEADERS frame has more padding than payload (RFC 9113 section 6.2).
    #[error("padding of a HEADERS frame is longer than the frame")]
    Padding,
    /// A header block takes more than 64 KiB on the wire.
    #[error("header block is too large")]
    BlockTooLarge,
    /// Rewritten header blocks outgrow what was read: a few bytes stood for very long fields, many times over.
    #[error("header blocks decompress to too much")]
    Expansion,
    /// A header block could not be decoded.
    #[error(transparent)]
    Hpack(#[from] HpackError),
    /// The server's first frame is not SETTINGS (RFC 9113 section 3.4): a fault of ours.
    #[error("server does not start with SETTINGS")]
    ServerPreface,
    /// The server announced a header table or a frame size other than the default: a fault of ours.
    #[error("server settings do not fit the wire layer")]
    ServerSettings,
    /// The server writes after GOAWAY was queued by [`Outbound::goaway`].
    #[error("connection is closed")]
    Closed,
}

impl WireError {
    /// A name for metrics and logs, of a small fixed set.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Preface => "preface",
            Self::FrameTooLarge => "frame_too_large",
            Self::BlockInterrupted => "block_interrupted",
            Self::StrayContinuation => "stray_continuation",
            Self::PushPromise => "push_promise",
            Self::HeadersWithoutStream => "headers_without_stream",
            Self::HeadersTooShort => "headers_too_short",
            Self::Padding => "padding",
            Self::BlockTooLarge => "block_too_large",
            Self::Expansion => "expansion",
            Self::Hpack(HpackError::ListTooLarge | HpackError::TooManyFields) => "list_too_large",
            Self::Hpack(_) => "compression",
            Self::ServerPreface => "server_preface",
            Self::ServerSettings => "server_settings",
            Self::Closed => "closed",
        }
    }

    /// The error code to send with GOAWAY.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Preface
            | Self::BlockInterrupted
            | Self::StrayContinuation
            | Self::PushPromise
            | Self::HeadersWithoutStream
            | Self::Padding => ErrorCode::ProtocolError,
            Self::FrameTooLarge | Self::HeadersTooShort => ErrorCode::FrameSizeError,
            Self::BlockTooLarge
            | Self::Expansion
            | Self::Hpack(HpackError::ListTooLarge | HpackError::TooManyFields) => ErrorCode::EnhanceYourCalm,
            Self::Hpack(_) => ErrorCode::CompressionError,
            Self::ServerPreface | Self::ServerSettings => ErrorCode::InternalError,
            Self::Closed => ErrorCode::NoError,
        }
    }
}

/// HTTP/2 error codes (RFC 9113 section 7), as far as a listener of ours has a use for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Graceful shutdown.
    NoError = 0x0,
    /// The client broke the protocol.
    ProtocolError = 0x1,
    /// Our own fault.
    InternalError = 0x2,
    /// A frame of a size that is not allowed.
    FrameSizeError = 0x6,
    /// The header compression state is lost.
    CompressionError = 0x9,
    /// The client asks for more than is reasonable.
    EnhanceYourCalm = 0xb,
    /// The connection is not one we may answer on, as when its bytes come from another process.
    InadequateSecurity = 0xc,
}

/// Empties a buffer for its next use. The memory stays, unless one exceptional use made it large.
fn recycle(buffer: &mut Vec<u8>) {
    const KEEP: usize = 16 * 1024;
    buffer.clear();
    buffer.shrink_to(KEEP);
}
