//! What was issued to whom, until when, and whether it still stands.
