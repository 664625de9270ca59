//! What peers may take.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How much, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one IP address.
    pub connections_per_address: usize,
    /// From the connection to the end of the TLS handshake, and to the first byte of HTTP.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// A connection without a request is closed after this.
    pub idle: Duration,
    /// The bytes of a request's head.
    pub head_bytes: usize,
    /// The headers of a request.
    pub headers: usize,
    /// Requests at once on one connection, in HTTP/2.
    pub streams: u32,
    /// From a request's last byte to the first of the answer.
    pub upstream: Duration,
    /// An idle connection to what is behind is not used again after this: servers close theirs after two seconds and more,
    /// and a request that meets its end on the way is lost.
    pub upstream_idle: Duration,
    /// What is open when the proxy is told to stop has this long to finish.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            head_bytes: 32 << 10,
            headers: 100,
            streams: 256,
            upstream: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(1),
            drain: Duration::from_secs(10),
        }
    }
}

/// So many connections at once in all, and so many from each address; beyond that the answer is no.
#[derive(Clone, Debug)]
pub struct Places {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place, free again when this is dropped.
#[derive(Debug)]
pub struct Seat {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// So many in all, and so many of one address.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, taken: Arc::default() }
    }

    /// A place for a connection from `address`, if there is one.
    pub fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = network(address);
        let mut taken = self.taken();
        let of_one = taken.by_address.get(&address).copied().unwrap_or_default();
        if taken.all >= self.most || of_one >= self.most_of_one {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, of_one + 1);
        Some(Seat { places: self.clone(), address })
    }

    /// How many are taken.
    pub fn open(&self) -> usize {
        self.taken().all
    }

    /// The counts are whole whenever the lock is free, also after a panic.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In IPv6 a host has a whole /64 to itself.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_at_its_limit_does_not_keep_out_another_and_a_free_place_can_be_taken_again() {
        let places = Places::new(3, 2);
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|ip| ip.parse().unwrap());
        let first = places.take(one).unwrap();
        let _second = places.take(same).unwrap();
        assert!(places.take(one).is_none(), "its network has two");
        let _third = places.take(other).unwrap();
        assert!(places.take("10.0.0.1".parse().unwrap()).is_none(), "all are taken");
        drop(first);
        assert_eq!(places.open(), 2);
        assert!(places.take(one).is_some());
    }
}
