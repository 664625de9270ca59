//! Randomness as an argument, so that a test can say what it was.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

type Fill = dyn Fn(&mut [u8]) + Send + Sync;

/// Where nonces, serial numbers, token ids and jitter come from. Keys are generated inside the crypto library.
#[derive(Clone)]
pub struct Entropy(Arc<Fill>);

impl Entropy {
    /// The operating system's generator, by way of the crypto library.
    pub fn system() -> Self {
        Self(Arc::new(|buf| {
            // A host whose kernel cannot give random bytes must not issue anything: stop rather than go on.
            SystemRandom::new().fill(buf).expect("the kernel's random generator works");
        }))
    }

    /// A source the caller controls, for tests.
    pub fn from_fn(fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// Fills `buf` with random bytes.
    pub fn fill(&self, buf: &mut [u8]) {
        (self.0)(buf);
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// `2 * N` lower-case hex digits made of `N` random bytes.
    pub fn hex<const N: usize>(&self) -> String {
        hex(&self.bytes::<N>())
    }

    /// A number in `[0, 1)`, for jitter.
    pub fn fraction(&self) -> f64 {
        let bits = u64::from_be_bytes(self.bytes()) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ_and_fractions_stay_below_one() {
        let entropy = Entropy::system();
        assert_ne!(entropy.hex::<16>(), entropy.hex::<16>());
        assert!((0.0..1.0).contains(&entropy.fraction()));
        let highest = Entropy::from_fn(|buf| buf.fill(0xff));
        assert!(highest.fraction() < 1.0);
    }
}
