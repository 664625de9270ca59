//! Calls of the Model Context Protocol inside HTTP requests (Streamable HTTP; protocol versions 2025-03-26 to 2026-07-28):
//! what a `POST` to an MCP server carries, read so that policy can decide each call of it, and what is answered where
//! policy says no. No I/O.
//!
//! ```text
//! headers, body -> Message::read -> rpcs() -> the agent decides each -> after(verdicts) -> forward | a part | answer
//! ```
//!
//! Promises: what is forwarded are the very bytes that were judged, and they are JSON that every reader reads alike
//! (see [`JsonError`]); where headers repeat what the body says (`Mcp-Method`, `Mcp-Name`, `MCP-Protocol-Version`), they
//! say the same; a call that was not allowed is not forwarded; whoever waits for an answer to it gets one, as a
//! JSON-RPC error that says what to do.
//!
//! Does not: look into answers, which pass as they come; know what a tool's arguments mean, or check the headers
//! `Mcp-Param-*`, which are made of them by a schema that the server has; relate a response of the client to the
//! server's question.

mod answer;
mod canonical;
mod json;
mod merge;
mod message;
mod mirror;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Fault, Malformed};
pub use json::JsonError;
pub use merge::{Merge, Merged};
pub use message::{Message, Next};

/// The largest body of a request that is read, in bytes: what the SDKs take, too.
pub const MAX_BODY: usize = 4 << 20;

/// Whether requests of this method carry messages. `GET` opens the server's own stream and `DELETE` ends an MCP session
/// (both up to 2025-11-25): these are decided as the requests they are, by their methods.
pub fn is_message(method: &http::Method) -> bool {
    method == http::Method::POST
}
