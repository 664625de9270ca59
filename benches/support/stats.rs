//! Medians and their spread. The machines that run this do other things as well, so nothing here is a mean, and every
//! ratio is taken between neighbours in time.

use std::time::Duration;

/// The value below which `percent` of the samples lie.
pub fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    let rank = (last as f64 * percent / 100.0).round() as usize;
    samples.get(rank).copied().unwrap_or(f64::NAN)
}

/// The middle value.
pub fn median(samples: &[f64]) -> f64 {
    percentile(&mut samples.to_vec(), 50.0)
}

/// A duration in microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// One figure for each round of a run.
#[derive(Clone, Debug, Default)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    /// The median round.
    pub fn median(&self) -> f64 {
        median(&self.0)
    }

    /// The middle half of the rounds.
    pub fn spread(&self) -> (f64, f64) {
        let mut sorted = self.0.clone();
        (percentile(&mut sorted, 25.0), percentile(&mut sorted, 75.0))
    }

    /// This over `other`, round by round.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}
