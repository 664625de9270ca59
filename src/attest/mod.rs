//! Attestation: from a process to what is known of it.

mod evidence;

pub use evidence::{Evidence, Gap};
