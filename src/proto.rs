//! Code generated from `proto/`: the SPIFFE Workload API and tether's own services. No hand-written logic.
#![allow(missing_docs, reason = "generated; the protos carry the documentation")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]

/// The SPIFFE Workload API. Its proto has no package, so neither does this module's wire name.
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

/// `tether.session.v1`.
pub mod session {
    include!(concat!(env!("OUT_DIR"), "/tether.session.v1.rs"));
}

/// `tether.admin.v1`.
pub mod admin {
    include!(concat!(env!("OUT_DIR"), "/tether.admin.v1.rs"));
}

/// `tether.export.v1`.
pub mod export {
    include!(concat!(env!("OUT_DIR"), "/tether.export.v1.rs"));
}

/// What Envoy speaks, in the packages that the generated code expects each other in.
pub mod envoy {
    pub mod config {
        pub mod core {
            /// `envoy.config.core.v3`.
            pub mod v3 {
                include!(concat!(env!("OUT_DIR"), "/envoy.config.core.v3.rs"));
            }
        }
    }

    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                /// `envoy.extensions.transport_sockets.tls.v3`.
                pub mod v3 {
                    include!(concat!(env!("OUT_DIR"), "/envoy.extensions.transport_sockets.tls.v3.rs"));
                }
            }
        }
    }

    pub mod service {
        pub mod discovery {
            /// `envoy.service.discovery.v3`.
            pub mod v3 {
                include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
            }
        }

        pub mod secret {
            /// `envoy.service.secret.v3`.
            pub mod v3 {
                include!(concat!(env!("OUT_DIR"), "/envoy.service.secret.v3.rs"));
            }
        }
    }
}

pub mod google {
    /// `google.rpc`.
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
    }
}

/// The encoded descriptors of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The response metadata in which tether says why it denied a call: the stable name of the reason. The standard has one
/// status for all of them; clients that do not know it lose nothing.
pub const DENIAL_METADATA: &str = "tether-denial";

/// The response metadata that names the approval a call waits for.
pub const APPROVAL_METADATA: &str = "tether-approval";

/// The response metadata that says why the session of a call has ended.
pub const SESSION_END_METADATA: &str = "tether-session-end";
