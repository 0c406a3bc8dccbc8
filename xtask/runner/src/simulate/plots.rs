//! The plots: what each world has reached of its goals, and each sweep with its bounds. They stand alone, in light and dark.

use std::fmt::Write as _;

use pool_explore::simulate::{Figure, Goal, Verdict};

use super::Outcome;
use super::sweeps::{Sweep, sweeps, title};
use crate::publish::charts::{Scale, short, ticks};
use crate::publish::escape::escape;

/// The colours of the report's page.
const STYLE: &str = "svg{font:12px system-ui,sans-serif}\
.card{fill:#fff}text{fill:#5d6675}.name{fill:#1b1f26}.grid{stroke:#e1e5ea}\
.line{fill:none;stroke:#3b6fd4;stroke-width:2}.dot{fill:#3b6fd4}.missed{fill:#c62f3b}.reached{fill:#1a7f4b}\
.bound{fill:none;stroke:#c62f3b;stroke-width:1.5;stroke-dasharray:6 4}\
@media(prefers-color-scheme:dark){.card{fill:#1b2027}text{fill:#9aa4b2}.name{fill:#e7eaef}.grid{stroke:#2d343e}\
.line{stroke:#6e9bf0}.dot{fill:#6e9bf0}.missed{fill:#ff6b76}.reached{fill:#4cc38a}.bound{stroke:#ff6b76}}";

const PANEL: (f64, f64) = (360.0, 210.0);
/// What lies further beyond its bound than this is drawn at the edge.
const BEYOND: f64 = 4.0;

/// Every plot, with the name of its file.
pub fn all(outcomes: &[Outcome]) -> Vec<(String, String)> {
    let own: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.case.sweep.is_none()).collect();
    let worlds = (!own.is_empty()).then(|| ("worlds".to_owned(), worlds(&own)));
    let sweeps = sweeps(outcomes).into_iter().map(|sweep| (sweep.name.to_owned(), panels(&sweep)));
    worlds.into_iter().chain(sweeps).collect()
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><style>{STYLE}</style><rect class="card" width="{width}" height="{height}" rx="8"/>"#
    )
}

/// A bar for each goal: its length is how much of the goal was reached, and the line is all of it.
fn worlds(outcomes: &[&Outcome]) -> String {
    let (row, from, width) = (20.0, 330.0, 900.0);
    let bars: Vec<(&str, &Verdict)> = outcomes
        .iter()
        .flat_map(|outcome| {
            outcome.judged.verdicts.iter().map(|verdict| (outcome.case.name.as_str(), verdict))
        })
        .collect();
    let height = row * rows(bars.len()) + 40.0;
    let scale = Scale { max: 2.0, from, to: width - 110.0 };
    let mut svg = open(width, height, "How much of each goal is reached");
    for (nth, (world, verdict)) in bars.iter().enumerate() {
        let y = 10.0 + row * rows(nth);
        let (middle, to) = (y + row / 2.0 + 4.0, scale.at(reached(verdict)).max(from + 1.0));
        let class = if verdict.is_met() { "reached" } else { "missed" };
        let name = verdict.goal.figure().name();
        let _ = write!(
            svg,
            r#"<g><title>{}</title><text class="name" x="{}" y="{middle:.1}" text-anchor="end">{world}: {}</text><rect class="{class}" x="{from}" y="{:.1}" width="{:.1}" height="13" rx="2"/><text x="{:.1}" y="{middle:.1}">{}</text></g>"#,
            escape(&verdict.to_string()),
            from - 10.0,
            escape(name),
            y + 3.0,
            to - from,
            to + 6.0,
            short(verdict.value)
        );
    }
    let line = scale.at(1.0);
    let _ = write!(
        svg,
        r#"<line class="bound" x1="{line:.1}" x2="{line:.1}" y1="6" y2="{:.1}"/><text x="{line:.1}" y="{:.1}" text-anchor="middle">all of the goal</text></svg>"#,
        height - 26.0,
        height - 10.0
    );
    svg.push('\n');
    svg
}

/// How much of a goal was reached: 1 is all of it.
fn reached(verdict: &Verdict) -> f64 {
    let part = match verdict.goal {
        Goal::AtLeast(_, bound) => verdict.value / bound,
        Goal::AtMost(_, bound) => bound / verdict.value,
    };
    if part.is_nan() { 1.0 } else { part }
}

/// One panel for each goal of a sweep.
fn panels(sweep: &Sweep) -> String {
    let figures: Vec<Figure> = sweep
        .points
        .iter()
        .take(1)
        .flat_map(|first| first.judged.verdicts.iter().map(|verdict| verdict.goal.figure()))
        .collect();
    let lines = figures.len().div_ceil(2);
    let mut svg = open(PANEL.0 * 2.0, PANEL.1 * rows(lines), title(sweep.name));
    for (nth, figure) in figures.into_iter().enumerate() {
        let (x, y) = (PANEL.0 * rows(nth % 2), PANEL.1 * rows(nth / 2));
        let _ = write!(svg, r#"<g transform="translate({x:.0} {y:.0})">{}</g>"#, panel(sweep, figure));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A figure over the swept value, with its bound. The values stand side by side at equal distances: each is about twice
/// the one before.
fn panel(sweep: &Sweep, figure: Figure) -> String {
    let verdicts: Vec<(f64, &Verdict)> = sweep
        .points
        .iter()
        .filter_map(|point| {
            let verdict = point.judged.verdicts.iter().find(|verdict| verdict.goal.figure() == figure)?;
            Some((point.case.sweep?.1, verdict))
        })
        .collect();
    let bound = verdicts.iter().map(|(_, verdict)| verdict.goal.bound()).fold(0.0, f64::max);
    let most = verdicts.iter().map(|(_, verdict)| verdict.value).fold(bound, f64::max).min(bound * BEYOND);
    let last = rows(verdicts.len().saturating_sub(1)).max(1.0);
    let x = Scale { max: last, from: 54.0, to: PANEL.0 - 20.0 };
    let y = Scale { max: most * 1.08, from: PANEL.1 - 42.0, to: 30.0 };
    let mut svg = format!(r#"<text class="name" x="54" y="18">{}</text>"#, escape(figure.name()));
    for tick in ticks(y.max, 4.0) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="54" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="48" y="{:.1}" text-anchor="end">{}</text>"#,
            x.to,
            at + 4.0,
            short(tick)
        );
    }
    let places = |of: fn(&Verdict) -> f64| -> String {
        let place = |(nth, (_, verdict)): (usize, &(f64, &Verdict))| {
            format!("{:.1},{:.1}", x.at(rows(nth)), y.at(of(verdict)))
        };
        verdicts.iter().enumerate().map(place).collect::<Vec<_>>().join(" ")
    };
    let _ = write!(svg, r#"<polyline class="bound" points="{}"/>"#, places(|verdict| verdict.goal.bound()));
    let _ = write!(svg, r#"<polyline class="line" points="{}"/>"#, places(|verdict| verdict.value));
    for (nth, (value, verdict)) in verdicts.iter().enumerate() {
        let class = if verdict.is_met() { "dot" } else { "missed" };
        let (at_x, at_y) = (x.at(rows(nth)), y.at(verdict.value));
        let _ = write!(
            svg,
            r#"<circle class="{class}" cx="{at_x:.1}" cy="{at_y:.1}" r="3.5"><title>{}</title></circle><text x="{at_x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            escape(&verdict.to_string()),
            y.from + 16.0,
            short(*value)
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
        x.to,
        PANEL.1 - 8.0,
        escape(title(sweep.name))
    );
    svg
}

fn rows(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use pool_explore::simulate::cases;

    use super::*;

    #[test]
    fn there_is_a_plot_of_the_worlds_and_one_of_each_sweep() {
        let few =
            cases().into_iter().filter(|case| ["cold", "slots-1", "slots-2"].contains(&case.name.as_str()));
        let outcomes: Vec<Outcome> = few.map(|case| Outcome { judged: case.run().unwrap(), case }).collect();
        let plots = all(&outcomes);
        let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["worlds", "slots"]);
        for (name, svg) in &plots {
            assert!(svg.starts_with("<svg xmlns") && svg.ends_with("</svg>\n"), "{name}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}: {svg}");
        }
    }
}
