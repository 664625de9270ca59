//! Waiting longer after each failure, never in step with others.

use std::time::Duration;

use super::entropy::Entropy;

/// Exponential delays with full jitter in the upper half: each delay lies in `[d/2, d)` and `d` doubles up to `max`.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// Delays that start at about `first` and never reach `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, first, max }
    }

    /// The delay before the next attempt.
    pub fn delay(&mut self, entropy: &Entropy) -> Duration {
        let ceiling = self.next;
        self.next = (ceiling * 2).min(self.max);
        ceiling.mul_f64(0.5 + entropy.fraction() / 2.0)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_success() {
        let lowest = Entropy::from_fn(|buf| buf.fill(0));
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        let delays: Vec<_> = (0..4).map(|_| backoff.delay(&lowest).as_millis()).collect();
        assert_eq!(delays, [50, 100, 150, 150]);
        backoff.reset();
        assert_eq!(backoff.delay(&lowest).as_millis(), 50);
    }
}
