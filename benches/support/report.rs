//! One line for each goal.

use serde::Serialize;

use super::stats::Rounds;

/// What was measured for one goal.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// `P1`, with a word behind it for figures that stand beside the goal's own.
    pub name: String,
    /// What was measured.
    pub what: String,
    /// The figure, in `unit`.
    pub value: f64,
    /// Of value and baseline.
    pub unit: &'static str,
    /// What it is compared with.
    pub baseline: Option<Baseline>,
    /// Value over baseline: the median round, then the middle half of the rounds.
    pub ratio: Option<[f64; 3]>,
    /// What is asked for; none for figures that only inform.
    pub goal: Option<String>,
    /// Whether it is reached.
    pub pass: Option<bool>,
}

/// What a figure is compared with, measured in the same run.
#[derive(Debug, Serialize)]
pub struct Baseline {
    /// What it is.
    pub what: String,
    /// How much, in the unit of the figure.
    pub value: f64,
}

impl Figure {
    /// A figure without comparison and goal.
    pub fn new(name: &str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            what: what.into(),
            value,
            unit,
            baseline: None,
            ratio: None,
            goal: None,
            pass: None,
        }
    }

    /// A figure of interleaved rounds beside its baseline.
    pub fn of_rounds(
        name: &str,
        what: impl Into<String>,
        rounds: &Rounds,
        unit: &'static str,
        baseline: impl Into<String>,
        beside: &Rounds,
    ) -> Self {
        let ratios = rounds.over(beside);
        let (low, high) = ratios.spread();
        let mut figure = Self::new(name, what, rounds.median(), unit).beside(baseline, beside.median());
        figure.ratio = Some([ratios.median(), low, high]);
        figure
    }

    /// Adds the baseline.
    #[must_use]
    pub fn beside(mut self, what: impl Into<String>, value: f64) -> Self {
        let ratio = self.value / value;
        self.baseline = Some(Baseline { what: what.into(), value });
        self.ratio = Some([ratio; 3]);
        self
    }

    /// Adds a goal, and whether `holds`.
    #[must_use]
    pub fn goal(mut self, goal: &str, holds: bool) -> Self {
        self.goal = Some(goal.to_owned());
        self.pass = Some(holds);
        self
    }

    /// The median ratio.
    pub fn median_ratio(&self) -> f64 {
        self.ratio.map_or(f64::NAN, |[median, ..]| median)
    }

    fn line(&self) -> String {
        let mut line = format!("{:<11} {:<58} {:>10} {}", self.name, self.what, number(self.value), self.unit);
        if let (Some(baseline), Some([median, low, high])) = (&self.baseline, self.ratio) {
            line += &format!("  = {} x {} ({})", number(median), number(baseline.value), baseline.what);
            if low < high {
                line += &format!(" [{}..{}]", number(low), number(high));
            }
        }
        match (&self.goal, self.pass) {
            (Some(goal), Some(true)) => line += &format!("  goal {goal}: PASS"),
            (Some(goal), _) => line += &format!("  goal {goal}: miss"),
            (None, _) => {}
        }
        line
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Prints figures as they come.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    json: bool,
}

impl Report {
    /// Lines for people, or one JSON object a line.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints one figure.
    pub fn print(&self, figure: &Figure) {
        match serde_json::to_string(figure) {
            Ok(json) if self.json => println!("{json}"),
            _ => println!("{}", figure.line()),
        }
    }
}
