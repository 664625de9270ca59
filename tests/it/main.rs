//! Behaviour of the whole agent, a module for each subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

#[path = "../harness/mod.rs"]
mod harness;

mod activation;
mod activity;
mod another;
mod approvals;
mod audit;
mod backup;
mod bad_input;
mod client;
mod clock;
mod credentials;
mod delegate;
mod delegated_source;
mod ends_and_streams;
mod examples;
mod handshake;
mod held;
mod http;
mod kept;
mod manager;
mod namespaces;
mod nodes;
mod nodes_told;
mod operations;
mod outside;
mod policy;
mod program;
mod prove;
mod proxy_inbound;
mod proxy_outbound;
mod raw;
mod reach;
mod recovery;
mod revocation;
mod rotation;
mod run;
mod sds;
mod sessions;
mod streams;
mod systemd_credentials;
mod tls;
mod users;
mod verifier;
mod wit;
mod write;
