//! What a workload, a thief or a tool is told to do, and what it answers: a line of JSON each way.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tether::proto::DENIAL_METADATA;
use tether::proto::session::OnBehalfOf;
use tonic::Status;

/// What to do, over a new connection to the agent where it is about the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Answered with [`X509`].
    FetchX509,
    /// For an audience; answered with the token.
    FetchJwt(String),
    /// Answered with [`Wit`].
    FetchWit,
    /// Answered with a [`Held`] whose document is the chain in hexadecimal.
    HoldX509(Option<Named>),
    /// Answered with a [`Held`] whose document is the WIT.
    HoldWit(Option<Named>),
    /// Answered with the signature.
    SignTls { key: String, scheme: u32, content: Vec<u8>, on_behalf_of: Option<Named> },
    /// Answered with [`Headers`].
    Prove { key: String, method: String, uri: String, on_behalf_of: Option<Named> },
    /// As a tool: answered with [`Verdict`].
    Check { method: String, uri: String, headers: Headers },
    /// As a tool: answered with the SPIFFE ID.
    Validate { audience: String, token: String },
    /// Begin a session; answered with its id.
    Start(Begin),
    /// Begin a session below another; answered with its id.
    Delegate { session: String, child: Begin },
    /// Prove one request in a session; answered with [`Headers`].
    ProveIn { session: String, method: String, uri: String },
    /// A token of a session for a target; answered with a [`Held`] whose key is the token's id.
    Mint { session: String, target: String, bearer: bool },
    /// Look at a session; answered with why it ended, or nothing.
    Look(String),
    /// The sessions of its user; answered with their ids.
    List,
    /// The first session that a watcher of one, or of all of its user, is told of; answered with the id.
    Watch(String),
    /// End a session; answered with the reason.
    EndSession(String),
    /// As a tool: say what became of a call.
    Report { session: String, txn: String },
    /// Approve what waits, over the admin socket.
    Approve { at: PathBuf, id: String },
    /// Keep the orphans of its descendants, as `tether run` does.
    KeepOrphans,
    /// Have a child of the same program carry it out.
    ByChild(Box<Order>),
    /// Have a child of a child do it, whose parent is gone.
    ByOrphan(Box<Order>),
    /// A TLS handshake as a client at a Unix socket; answered when the server has accepted it.
    Handshake { at: PathBuf, chain: String, key: String },
    /// Become another program of this role, in the same process.
    Exec(PathBuf),
    /// Become another user for good.
    BecomeUser(u32),
    /// Let nobody of its own user trace it.
    ForbidTracing,
    /// Move to a control group.
    EnterCgroup(PathBuf),
}

/// What a session is begun with; what is not said is as by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub purpose: String,
    pub targets: Vec<String>,
    pub scopes: Vec<String>,
    /// Each token is good for one call.
    pub one_call: bool,
    pub seconds: u32,
    pub calls: u32,
    /// For a process and its descendants.
    pub tree: bool,
    /// Who acts; absent: who begins it.
    pub process: Option<Named>,
}

/// A process, as a delegate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub pid: i32,
    pub inode: u64,
}

impl From<Named> for OnBehalfOf {
    fn from(named: Named) -> Self {
        Self { pid: named.pid, pidfs_inode: named.inode, weak: false }
    }
}

/// HTTP headers.
pub type Headers = HashMap<String, String>;

/// An X.509-SVID whose key is in the workload, in PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct X509 {
    pub chain: String,
    pub key: String,
}

/// A WIT-SVID whose key is in the workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wit {
    pub token: String,
    pub key: String,
}

/// A document whose key is not in the workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held {
    pub key: String,
    pub document: String,
    /// As far as the agent says.
    pub binding: u32,
}

/// What the verifier says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub active: bool,
    pub reason: String,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The gRPC status, or `tls`.
    pub code: String,
    /// The denial that the agent's metadata name; empty where there is none.
    pub denial: String,
    pub message: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let denial = status.metadata().get(DENIAL_METADATA).and_then(|value| value.to_str().ok());
        Self {
            code: format!("{:?}", status.code()),
            denial: denial.unwrap_or_default().to_owned(),
            message: status.message().to_owned(),
        }
    }
}

/// What a process answers.
pub type Answer = Result<serde_json::Value, Refused>;
