//! The kernel, wrapped: process handles, peer credentials, credentials of each message, namespaces.
//!
//! The only unsafe code of the crate is here, each block with the reason why it is sound. Nothing here decides.

pub mod procfs;
