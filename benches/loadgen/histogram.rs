//! Latencies in buckets that grow with them: within 3 %, in a few kilobytes, and easy to add up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Buckets for each doubling.
const STEPS: f64 = 32.0;

/// How often which latency was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(Vec<u64>);

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, time: Duration) {
        let micros = (time.as_secs_f64() * 1e6).max(1.0);
        self.count_in((micros.log2() * STEPS).round() as usize, 1);
    }

    /// Counts all of another's.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in other.0.iter().enumerate() {
            self.count_in(bucket, *count);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The latency below which `percent` of them are, in microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        let wanted = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        bucket.map_or(f64::NAN, |bucket| (bucket as f64 / STEPS).exp2())
    }

    fn count_in(&mut self, bucket: usize, count: u64) {
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += count;
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        seen.into_iter().try_for_each(|(bucket, count)| write!(f, "{bucket}:{count} "))
    }
}

impl FromStr for Histogram {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut histogram = Self::default();
        for word in text.split_whitespace() {
            let (bucket, count) = word.split_once(':').ok_or("not a bucket and its count")?;
            histogram.count_in(bucket.parse()?, count.parse()?);
        }
        Ok(histogram)
    }
}
