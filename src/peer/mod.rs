//! Who is on the other end of a connection, whether it is still there, and whether it is still the same.

pub mod wire;
