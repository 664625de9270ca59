//! Whole connections through [`Inbound`](super::Inbound) and [`Outbound`](super::Outbound).

pub(super) mod encoder;
