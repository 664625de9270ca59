//! Room for bodies that are held whole: so much together, and so much of that for one peer.
//!
//! Promises: one peer leaves room for others, however many bodies it begins and however slowly it sends them. Does not
//! wait: where there is no room the answer is no.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::SpiffeId;

/// What all bodies may take together, in bytes.
const ALL: usize = 256 << 20;
/// What those of one peer may take of it, unless a single body may be larger.
const OF_ONE: usize = ALL / 8;

/// Clones are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<SpiffeId, usize>,
}

/// There is none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Some of it, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Room,
    peer: SpiffeId,
    /// What bodies of this peer may take together.
    most: usize,
    bytes: usize,
}

impl Room {
    /// For a body of `peer` of at most `limit` bytes; nothing of it is taken yet.
    pub(super) fn of(&self, peer: &SpiffeId, limit: usize) -> Held {
        Held { room: self.clone(), peer: peer.clone(), most: OF_ONE.max(limit), bytes: 0 }
    }

    /// Whole whenever the lock is free, also after a panic.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes as much as makes it `bytes`, if it is less so far.
    ///
    /// # Errors
    /// There is no room; it has what it had.
    pub(super) fn reach(&mut self, bytes: usize) -> Result<(), Full> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.room.lock();
        let of_one = taken.by_peer.get(&self.peer).copied().unwrap_or_default();
        if more > ALL.saturating_sub(taken.all) || more > self.most.saturating_sub(of_one) {
            return Err(Full);
        }
        taken.all += more;
        taken.by_peer.insert(self.peer.clone(), of_one + more);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.all -= self.bytes;
        if let Some(of_one) = taken.by_peer.get_mut(&self.peer) {
            *of_one -= self.bytes;
            if *of_one == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://dev.tether.internal/{name}")).unwrap()
    }

    #[test]
    fn one_peer_cannot_take_the_room_of_others_and_gives_back_what_it_took() {
        let room = Room::default();
        let (mut greedy, mut more) = (room.of(&peer("greedy"), 1), room.of(&peer("greedy"), 1));
        assert_eq!(greedy.reach(OF_ONE), Ok(()));
        assert_eq!(greedy.reach(OF_ONE), Ok(()), "it has that already");
        assert_eq!(more.reach(1), Err(Full));
        assert_eq!(room.of(&peer("other"), 1).reach(OF_ONE), Ok(()));
        drop(greedy);
        assert_eq!(more.reach(1), Ok(()));
        drop(more);
        let taken = room.lock();
        assert!(taken.all == 0 && taken.by_peer.is_empty());
    }

    #[test]
    fn a_body_that_may_be_larger_than_the_share_of_a_peer_has_room_and_all_together_have_an_end() {
        let room = Room::default();
        assert_eq!(room.of(&peer("large"), OF_ONE + 1).reach(OF_ONE + 1), Ok(()));
        let peers: Vec<_> = (0..8)
            .map(|number| {
                let mut held = room.of(&peer(&format!("p{number}")), 1);
                assert_eq!(held.reach(OF_ONE), Ok(()));
                held
            })
            .collect();
        assert_eq!(room.of(&peer("last"), 1).reach(1), Err(Full));
        drop(peers);
    }
}
