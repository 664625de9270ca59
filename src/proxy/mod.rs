//! Mutual TLS for programs that know nothing of SPIFFE: in front of a tool, and beside an agent.

pub mod mcp;
