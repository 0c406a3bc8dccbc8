//! Figures: what a case has measured, for people at once and for the report afterwards.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::naming::current_test;

const KIND: &str = "figure";

/// Something that a case has measured: one value, or a series of points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The suite of the test that measured.
    pub suite: String,
    /// The case that measured.
    pub case: String,
    /// What was measured.
    pub name: String,
    /// The value; of a series, that of its last point. None when it was no finite number.
    pub value: Option<f64>,
    /// The unit of the value; of a series, that of its y axis.
    pub unit: String,
    /// The unit of the x axis; empty without a series.
    #[serde(default)]
    pub x_unit: String,
    /// The points, in the order of their x.
    #[serde(default)]
    pub series: Vec<(f64, f64)>,
}

/// Tells a figure: `name: value unit` on standard output, and in the report.
pub fn figure(name: &str, value: f64, unit: &str) {
    println!("{name}: {} {unit}", rounded(value));
    tell(name, value, unit, "", Vec::new());
}

/// Tells how one figure depends on another: a line for each point on standard output, and a plot in the
/// report. Points that are no finite numbers are left out of it.
pub fn figure_series(name: &str, x_unit: &str, y_unit: &str, points: &[(f64, f64)]) {
    for (x, y) in points {
        println!("{name}: {} {y_unit} at {} {x_unit}", rounded(*y), rounded(*x));
    }
    let mut series: Vec<(f64, f64)> =
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    series.sort_by(|a, b| a.0.total_cmp(&b.0));
    let last = series.last().map_or(f64::NAN, |(_, y)| *y);
    tell(name, last, y_unit, x_unit, series);
}

fn tell(name: &str, value: f64, unit: &str, x_unit: &str, series: Vec<(f64, f64)>) {
    let (suite, case) = current_test();
    let (name, unit, x_unit) = (name.to_owned(), unit.to_owned(), x_unit.to_owned());
    let value = value.is_finite().then_some(value);
    super::leave(KIND, &Figure { suite, case, name, value, unit, x_unit, series });
}

/// A value as people want to read it: large ones whole, small ones with three digits.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 1.0 || size == 0.0 => {
            format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').into()
        }
        _ => format!("{value:.3}"),
    }
}

/// The figures in a directory, in the order of suite, case and name.
///
/// # Errors
/// When the directory or one of the figures cannot be read.
pub fn read_figures(dir: &Path) -> io::Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = super::read(dir, KIND)?;
    figures.sort_by(|a, b| (&a.suite, &a.case, &a.name).cmp(&(&b.suite, &b.case, &b.name)));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(12345.6, "12346")]
    #[case(8.0, "8")]
    #[case(8.126, "8.13")]
    #[case(0.0, "0")]
    #[case(0.01234, "0.012")]
    #[case(f64::NAN, "NaN")]
    fn values_are_short(#[case] value: f64, #[case] expected: &str) {
        assert_eq!(rounded(value), expected);
    }

    #[test]
    fn figures_are_read_back_and_records_are_not_taken_for_figures() {
        let dir = tempfile::tempdir().unwrap();
        let figure = |name: &str| Figure {
            suite: "performance".into(),
            case: "c".into(),
            name: name.into(),
            value: Some(1.5),
            unit: "ms".into(),
            x_unit: String::new(),
            series: vec![(1.0, 2.0)],
        };
        for (file, name) in [("figure-2", "b"), ("figure-1", "c"), ("figure-3", "a")] {
            let json = serde_json::to_vec(&figure(name)).unwrap();
            std::fs::write(dir.path().join(format!("{file}.json")), json).unwrap();
        }
        std::fs::write(dir.path().join("pool-1.json"), "{}").unwrap();
        assert_eq!(read_figures(dir.path()).unwrap(), [figure("a"), figure("b"), figure("c")]);
    }
}
