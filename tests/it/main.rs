//! Behaviour of the whole agent, a module for each subject.

#[path = "../harness/mod.rs"]
mod harness;

mod rotation;
mod streams;
