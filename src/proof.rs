//! Proofs of possession for one HTTP request: WIMSE WPT and DPoP, made and checked. No I/O.
