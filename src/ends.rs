//! The ends: what revokes issued credentials, watched as events and carried out as one chain.
