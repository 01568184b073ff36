//! The figures of a run: a table for people, JSON for programs, and whether a bar is met.

use std::fmt::Write;

use crate::load::{Sample, Workload};

/// Fewest pairs a verdict by ratio may rest on.
const PAIRS_FOR_A_BAR: usize = 7;

/// Near enough to the floor, whatever the peer does.
const FLOOR_FACTOR: f64 = 1.15;

/// A peer that moved less than this share of our bytes per second says nothing about the price of a byte.
const COMPARABLE_RATE: f64 = 0.3;

/// One workload at one MTU.
pub(crate) struct Row {
    pub(crate) workload: Workload,
    pub(crate) mtu: u32,
    pub(crate) pairs: Vec<Pair>,
}

/// What was measured in one pass, one after the other; `None` where it failed or was not asked for.
#[derive(Default)]
pub(crate) struct Pair {
    pub(crate) ours: Option<Sample>,
    pub(crate) peer: Option<Sample>,
    pub(crate) floor: Option<Sample>,
}

impl Row {
    /// Median of something over the passes that have it.
    pub(crate) fn median(&self, of: impl Fn(&Pair) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.pairs.iter().filter_map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
        Some(f64::midpoint(values[low], values[high]))
    }

    /// Our rate in the peer's, median of the pairs.
    fn rate_ratio(&self) -> Option<f64> {
        self.median(|pair| Some(pair.ours?.rate / pair.peer?.rate))
    }

    fn cost_ratio_of(pair: &Pair) -> Option<f64> {
        let (ours, peer) = (pair.ours?, pair.peer?);
        (peer.rate >= COMPARABLE_RATE * ours.rate).then_some(ours.cost / peer.cost)
    }

    /// Our cost in the peer's, median of the pairs in which the peer did comparable work.
    fn cost_ratio(&self) -> Option<f64> {
        self.median(Self::cost_ratio_of)
    }

    /// Our cost in the floor's, of the medians.
    fn floor_ratio(&self) -> Option<f64> {
        let (ours, floor) = (
            self.median(|pair| Some(pair.ours?.cost))?,
            self.median(|pair| Some(pair.floor?.cost))?,
        );
        Some(ours / floor)
    }

    /// Whether "no dearer than the peer" is met.
    fn bar(&self) -> &'static str {
        if self
            .floor_ratio()
            .is_some_and(|ratio| ratio <= FLOOR_FACTOR)
        {
            return "met (floor)";
        }
        let comparable = self.pairs.iter().filter_map(Self::cost_ratio_of).count();
        match self.cost_ratio() {
            None => "-",
            Some(_) if comparable < PAIRS_FOR_A_BAR => "too few pairs",
            Some(ratio) if ratio <= 1.0 => "met (peer)",
            Some(_) => "missed",
        }
    }
}

/// The table, a line per workload and MTU.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<9}{:>6} {:>16} | {:>9} {:>9} {:>9} {:>7} | {:>9} {:>9} {:>9} {:>7} | {:>6} {:>6} | {:>9} {:>6} | {}\n",
        "workload",
        "mtu",
        "rate, cost in",
        "ours rate",
        "cost",
        "p99 µs",
        "resent",
        "peer rate",
        "cost",
        "p99 µs",
        "resent",
        "×rate",
        "×cost",
        "floor",
        "×floor",
        "bar"
    );
    for row in rows {
        let (rate, cost) = row.workload.units();
        let _ = write!(
            text,
            "{:<9}{:>6} {:>16}",
            name(row.workload),
            row.mtu,
            format!("{rate}, {}", cost.trim_start_matches("CPU "))
        );
        for side in [|pair: &Pair| pair.ours, |pair: &Pair| pair.peer] {
            let _ = write!(
                text,
                " | {:>9} {:>9} {:>9} {:>7}",
                short(row.median(|pair| Some(side(pair)?.rate))),
                short(row.median(|pair| Some(side(pair)?.cost))),
                short(row.median(|pair| side(pair)?.p99)),
                short(row.median(|pair| Some(side(pair)?.retransmissions as f64))),
            );
        }
        let _ = writeln!(
            text,
            " | {:>6} {:>6} | {:>9} {:>6} | {}",
            short(row.rate_ratio()),
            short(row.cost_ratio()),
            short(row.median(|pair| Some(pair.floor?.cost))),
            short(row.floor_ratio()),
            row.bar()
        );
    }
    text
}

/// Three or four figures, as many as mean something.
pub(crate) fn short(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value.abs() < 1.0 => format!("{value:.3}"),
        Some(value) if value.abs() < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// The workload's name as on the command line.
pub(crate) fn name(workload: Workload) -> String {
    clap::ValueEnum::to_possible_value(&workload)
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// All samples and the figures of the table; numbers that do not exist are `null`.
pub(crate) fn json(facts: &[(String, String)], rows: &[Row]) -> String {
    let facts: Vec<String> = facts
        .iter()
        .map(|(key, value)| format!("{}: {}", quoted(key), quoted(value)))
        .collect();
    let rows: Vec<String> = rows.iter().map(row_json).collect();
    format!(
        "{{\"machine\": {{{}}},\n\"rows\": [\n{}\n]}}\n",
        facts.join(", "),
        rows.join(",\n")
    )
}

fn row_json(row: &Row) -> String {
    let pairs: Vec<String> = row
        .pairs
        .iter()
        .map(|pair| {
            format!(
                "{{\"ours\": {}, \"peer\": {}, \"floor\": {}}}",
                sample_json(pair.ours),
                sample_json(pair.peer),
                sample_json(pair.floor)
            )
        })
        .collect();
    let (rate, cost) = row.workload.units();
    format!(
        "{{\"workload\": {}, \"mtu\": {}, \"rate_unit\": {}, \"cost_unit\": {}, \"rate_ratio\": {}, \"cost_ratio\": {}, \
         \"floor_ratio\": {}, \"bar\": {},\n  \"pairs\": [{}]}}",
        quoted(&name(row.workload)),
        row.mtu,
        quoted(rate),
        quoted(cost),
        number(row.rate_ratio()),
        number(row.cost_ratio()),
        number(row.floor_ratio()),
        quoted(row.bar()),
        pairs.join(", ")
    )
}

fn sample_json(sample: Option<Sample>) -> String {
    sample.map_or_else(
        || "null".to_owned(),
        |sample| {
            format!(
                "{{\"rate\": {}, \"cost\": {}, \"p50_us\": {}, \"p99_us\": {}, \"retransmissions\": {}, \"needless\": {}}}",
                number(Some(sample.rate)),
                number(Some(sample.cost)),
                number(sample.p50),
                number(sample.p99),
                sample.retransmissions,
                sample.needless
            )
        },
    )
}

fn number(value: Option<f64>) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| "null".to_owned(), |value| value.to_string())
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
