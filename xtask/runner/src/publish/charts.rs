//! The plots of the page, as SVG that takes its colours from the page's style: so the same drawing is right in light and dark.

use std::fmt::Write as _;

use pool_testkit::run::{Figure, Point};

use super::escape::escape;
use super::{CaseReport, Report};

/// How many steps of time the timeline shows at most.
const COLUMNS: u64 = 600;
/// Colours that the style has for suites.
const COLOURS: usize = 8;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;

/// The number of a suite's colour.
pub fn colour(suites: &[&str], suite: &str) -> usize {
    suites.iter().position(|name| *name == suite).unwrap_or_default() % COLOURS
}

/// Where values of a plot lie on the page.
pub struct Scale {
    /// The value at the far end; the near end is zero.
    pub max: f64,
    /// Where the near end lies.
    pub from: f64,
    /// Where the far end lies.
    pub to: f64,
}

impl Scale {
    /// The place of a value; one beyond the end lies at the end.
    pub fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.max).clamp(0.0, 1.0)
    }
}

/// Round numbers from 0 up to `max`, about `count` of them.
pub fn ticks(max: f64, count: f64) -> Vec<f64> {
    if !(max.is_finite() && max > 0.0) {
        return vec![0.0];
    }
    let rough = max / count;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    std::iter::successors(Some(0.0), |tick| Some(tick + step))
        .take_while(|tick| *tick <= max * 1.0001)
        .collect()
}

/// A number as short as its size allows.
pub fn short(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Sessions by suite over time, stacked, against the line of what tests may use.
pub fn timeline(report: &Report, suites: &[&str]) -> String {
    let height = 300.0;
    let columns = columns(&report.timeline);
    // The end of the last sample is the end of the plot: a step needs something to its right.
    let end = columns.last().map_or(1, |point| point.at_ms + 1).max(1);
    let peak = columns.iter().map(Point::total).max().unwrap_or_default();
    let most = f64::from(report.connections.budget.max(peak).max(1)) * 1.08;
    let x = Scale { max: millis(end), from: LEFT, to: WIDTH - RIGHT };
    let y = Scale { max: most, from: height - 28.0, to: 14.0 };
    let mut svg = open("timeline", height, "Connections by suite over time");
    grid(&mut svg, &x, &y, &ticks(millis(end) / 1000.0, 8.0), 1000.0, "s");
    let mut below = vec![0_u32; columns.len()];
    for suite in suites {
        let above: Vec<u32> = columns
            .iter()
            .zip(&below)
            .map(|(point, below)| below + point.by_suite.get(*suite).copied().unwrap_or_default())
            .collect();
        let path = stacked(&columns, end, &below, &above, &x, &y);
        let _ = write!(
            svg,
            r#"<path class="s{}" d="{path}"><title>{}</title></path>"#,
            colour(suites, suite),
            escape(suite)
        );
        below = above;
    }
    let line = y.at(f64::from(report.connections.budget));
    let _ = write!(
        svg,
        r#"<line class="budget" x1="{LEFT}" x2="{:.1}" y1="{line:.1}" y2="{line:.1}"/><text class="budget-text" x="{:.1}" y="{:.1}" text-anchor="end">budget: {} connections that tests may use</text></svg>"#,
        WIDTH - RIGHT,
        WIDTH - RIGHT - 4.0,
        line - 5.0,
        report.connections.budget
    );
    svg
}

/// The samples, as many as can be seen; of those that fall together the one with the most sessions.
fn columns(points: &[Point]) -> Vec<Point> {
    let end = points.last().map_or(0, |point| point.at_ms);
    let width = end.div_ceil(COLUMNS).max(1);
    let mut columns: Vec<Point> = Vec::new();
    for point in points {
        match columns.last_mut() {
            Some(last) if last.at_ms / width == point.at_ms / width => last.cover(point.clone()),
            _ => columns.push(point.clone()),
        }
    }
    columns
}

/// An area between two staircases.
fn stacked(columns: &[Point], end: u64, below: &[u32], above: &[u32], x: &Scale, y: &Scale) -> String {
    let mut path = String::new();
    let ends: Vec<f64> =
        columns.iter().skip(1).map(|point| point.at_ms).chain([end]).map(|at| x.at(millis(at))).collect();
    for ((point, to), level) in columns.iter().zip(&ends).zip(above) {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let level = y.at(f64::from(*level));
        let _ = write!(path, "{command}{:.1} {level:.1}H{to:.1}", x.at(millis(point.at_ms)));
    }
    for ((point, to), level) in columns.iter().zip(&ends).zip(below).rev() {
        let _ = write!(path, "L{to:.1} {:.1}H{:.1}", y.at(f64::from(*level)), x.at(millis(point.at_ms)));
    }
    path.push('Z');
    path
}

/// How long each case took, the longest first within its suite.
pub fn bars(cases: &[&CaseReport], colour: usize, longest_ms: f64) -> String {
    let (row, text) = (22.0, 390.0);
    let height = row * rows(cases.len()) + 4.0;
    let scale = Scale { max: longest_ms.max(1.0), from: text, to: WIDTH - 90.0 };
    let mut svg = open("bars", height, "Time of each case");
    for (number, case) in cases.iter().enumerate() {
        let y = row * rows(number);
        let middle = y + row / 2.0 + 4.0;
        let took = case.time_ms.unwrap_or_default();
        let (width, class) = ((scale.at(took) - text).max(1.5), bar_class(case, colour));
        let told = if case.outcome == "skipped" { "skipped".to_owned() } else { time(case.time_ms) };
        let _ = write!(
            svg,
            r#"<g><title>{}: {}, {told}, {} connections opened, {} at a time</title><text class="name {}" x="{:.0}" y="{middle:.1}" text-anchor="end">{}</text><rect class="{class}" x="{text}" y="{:.1}" width="{width:.1}" height="14" rx="3"/><text class="value" x="{:.1}" y="{middle:.1}">{told}</text></g>"#,
            escape(&case.path()),
            case.outcome,
            case.opened,
            case.peak,
            case.outcome,
            text - 10.0,
            escape(&cut(&case.name)),
            y + 4.0,
            text + width + 8.0
        );
    }
    svg.push_str("</svg>");
    svg
}

fn bar_class(case: &CaseReport, colour: usize) -> String {
    match case.outcome {
        "failed" => "bad".to_owned(),
        "skipped" => "none".to_owned(),
        _ => format!("s{colour}"),
    }
}

/// A time in milliseconds, for people.
pub fn time(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        Some(ms) => format!("{ms:.0} ms"),
    }
}

/// A name that fits beside its bar.
fn cut(name: &str) -> String {
    const MOST: usize = 52;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}

/// A series of points, small, with its line.
pub fn plot(figure: &Figure) -> String {
    let (width, height) = (320.0, 190.0);
    let of = |pick: fn(&(f64, f64)) -> f64| figure.series.iter().map(pick).fold(0.0_f64, f64::max);
    let (most_x, most_y) = (of(|point| point.0), of(|point| point.1));
    let x = Scale { max: positive(most_x), from: 50.0, to: width - 14.0 };
    let y = Scale { max: positive(most_y) * 1.1, from: height - 38.0, to: 12.0 };
    let mut svg = format!(
        r#"<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#,
        escape(&figure.name)
    );
    for tick in ticks(y.max, 4.0) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="50" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="44" y="{:.1}" text-anchor="end">{}</text>"#,
            x.to,
            at + 4.0,
            short(tick)
        );
    }
    for tick in ticks(x.max, 5.0) {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x.at(tick),
            y.from + 16.0,
            short(tick)
        );
    }
    let places: Vec<(f64, f64)> = figure.series.iter().map(|point| (x.at(point.0), y.at(point.1))).collect();
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(svg, r#"<polyline class="line" points="{}"/>"#, line.join(" "));
    for ((at_x, at_y), (value_x, value_y)) in places.iter().zip(&figure.series) {
        let _ = write!(
            svg,
            r#"<circle class="dot" cx="{at_x:.1}" cy="{at_y:.1}" r="3"><title>{} {} at {} {}</title></circle>"#,
            short(*value_y),
            escape(&figure.unit),
            short(*value_x),
            escape(&figure.x_unit)
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text></svg>"#,
        x.to,
        height - 6.0,
        escape(&figure.x_unit)
    );
    svg
}

fn open(class: &str, height: f64, label: &str) -> String {
    format!(r#"<svg class="{class}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">"#)
}

fn grid(svg: &mut String, x: &Scale, y: &Scale, x_ticks: &[f64], per_tick: f64, unit: &str) {
    for tick in ticks(y.max, 5.0) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            x.to,
            LEFT - 7.0,
            at + 4.0,
            short(tick)
        );
    }
    for tick in x_ticks {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{} {unit}</text>"#,
            x.at(tick * per_tick),
            y.from + 19.0,
            short(*tick)
        );
    }
}

fn positive(max: f64) -> f64 {
    if max > 0.0 { max } else { 1.0 }
}

/// Plots need no more than the 52 bits that are exact.
#[expect(clippy::cast_precision_loss, reason = "no run takes 2^52 milliseconds")]
fn millis(at_ms: u64) -> f64 {
    at_ms as f64
}

fn rows(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(97.0, 5.0), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(ticks(1.0, 5.0).len(), 6);
        assert_eq!(ticks(0.0, 5.0), [0.0]);
        assert_eq!(ticks(f64::NAN, 5.0), [0.0]);
    }

    #[test]
    fn numbers_are_short() {
        let told: Vec<String> = [0.0, 1234.4, 10.0, 12.34, 1.5, 0.0123].into_iter().map(short).collect();
        assert_eq!(told, ["0", "1234", "10", "12.3", "1.5", "0.0123"]);
    }

    #[test]
    fn samples_that_fall_together_keep_their_peak_and_are_few() {
        let sample = |i: u64| {
            let count = if i == 4_567 { 42 } else { 1 };
            Point { at_ms: i * 10, by_suite: BTreeMap::from([("s".to_owned(), count)]) }
        };
        let points: Vec<Point> = (0..10_000).map(sample).collect();
        let columns = columns(&points);
        assert!(columns.len() <= 601, "{}", columns.len());
        assert_eq!(columns.iter().map(Point::total).max(), Some(42));
    }
}
