//! The rules, each beside the test that shows it.

pub mod bundle;
pub mod choice;
pub mod client;
pub mod endpoint;
pub mod id;
pub mod incubating;
pub mod jwt_issuer;
pub mod jwt_validator;
pub mod stream;
pub mod wit_issuer;
pub mod wit_validator;
pub mod workload;
pub mod x509_issuer;
pub mod x509_validator;
