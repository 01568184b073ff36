//! The figures of a run as a picture: bars per workload for us, the peer and the floor.

use std::fmt::Write;

use crate::{
    load::Sample,
    report::{Pair, Row, name, short},
};

/// Sizes in pixels.
const WIDTH: u32 = 860;
const LABEL: u32 = 130;
const PANEL: u32 = (WIDTH - LABEL) / 2;
/// The longest bar; what is left of the panel holds its figure.
const BAR: u32 = PANEL - 110;
const THICK: u32 = 12;
const HEAD: u32 = 56;
const GAP: u32 = 14;
const LINE: u32 = 14;

/// A bar: who, in which colour, and where its sample is.
type Side = (&'static str, &'static str, fn(&Pair) -> Option<Sample>);

const SIDES: [Side; 3] = [
    ("ours", "#1b7f5c", |pair| pair.ours),
    ("peer", "#b5651d", |pair| pair.peer),
    ("floor", "#8a8f98", |pair| pair.floor),
];

/// What is drawn of a sample, and its heading.
type Panel = (&'static str, fn(Sample) -> f64);

const PANELS: [Panel; 2] = [
    ("speed, more is better", |sample| sample.rate),
    ("price, less is better", |sample| sample.cost),
];

/// Rows with no sample are left out. Bars are to scale within their group only: units differ.
pub(crate) fn svg(facts: &[(String, String)], rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for row in rows {
        let sides: Vec<Side> = SIDES
            .into_iter()
            .filter(|&(_, _, of)| row.pairs.iter().any(|pair| of(pair).is_some()))
            .collect();
        if sides.is_empty() {
            continue;
        }
        let middle = y + THICK * sides.len() as u32 / 2;
        let label = format!("{}, MTU {}", name(row.workload), row.mtu);
        text(&mut body, 8, middle + 4, "#222", &label);
        for (column, panel) in PANELS.into_iter().enumerate() {
            group(
                &mut body,
                row,
                &sides,
                panel,
                (LABEL + PANEL * column as u32, y),
            );
        }
        y += THICK * sides.len() as u32 + GAP;
    }
    let mut head = String::new();
    for (column, (title, _)) in PANELS.into_iter().enumerate() {
        text(
            &mut head,
            LABEL + PANEL * column as u32,
            HEAD - 12,
            "#222",
            title,
        );
    }
    for (place, (who, colour, _)) in SIDES.into_iter().enumerate() {
        let x = 8 + 70 * place as u32;
        bar(&mut head, (x, 12), 12, colour);
        text(&mut head, x + 16, 22, "#222", who);
    }
    for (key, value) in facts {
        y += LINE;
        text(&mut body, 8, y, "#555", &format!("{key}: {value}"));
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{head}{body}</svg>\n"
    )
}

/// One workload in one panel.
fn group(body: &mut String, row: &Row, sides: &[Side], panel: Panel, at: (u32, u32)) {
    let (rate, cost) = row.workload.units();
    let unit = if panel.0 == PANELS[0].0 { rate } else { cost };
    let median = |of: fn(&Pair) -> Option<Sample>| row.median(|pair| of(pair).map(panel.1));
    let most = sides
        .iter()
        .filter_map(|&(_, _, of)| median(of))
        .fold(f64::MIN_POSITIVE, f64::max);
    for (place, &(_, colour, of)) in sides.iter().enumerate() {
        let Some(value) = median(of) else { continue };
        let (x, y) = (at.0, at.1 + THICK * place as u32);
        let long = (value / most * f64::from(BAR)).round().max(1.0) as u32;
        bar(body, (x, y), long, colour);
        let figure = format!("{} {unit}", short(Some(value)));
        text(body, x + long + 4, y + THICK - 3, "#222", &figure);
    }
}

fn bar(out: &mut String, (x, y): (u32, u32), long: u32, colour: &str) {
    let thick = THICK - 2;
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{long}\" height=\"{thick}\" fill=\"{colour}\"/>"
    );
}

fn text(out: &mut String, x: u32, y: u32, colour: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{text}</text>"
    );
}
