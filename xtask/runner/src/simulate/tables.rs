//! The figures as a table for a terminal, as one for the page, and as lines for a spreadsheet.

use std::fmt::Write as _;

use anstyle::Style;
use pool_explore::simulate::{Figure, Goal, Verdict, Workload};

use super::sweeps::{Sweep, sweeps, title};
use super::{BAD, GOOD, Outcome};

const HEAD: Style = Style::new().bold();

/// What a person reads in a terminal: each world with its goals and its other figures, then each sweep as a table.
pub fn text(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.case.sweep.is_none()) {
        world(&mut text, outcome);
    }
    for sweep in sweeps(outcomes) {
        heads(&mut text, &sweep);
        for outcome in sweep.points {
            point(&mut text, outcome);
        }
    }
    text
}

fn world(text: &mut String, outcome: &Outcome) {
    let Outcome { case, judged } = outcome;
    let _ = writeln!(text, "{HEAD}{}{HEAD:#}  {}", case.name, case.about);
    for verdict in &judged.verdicts {
        let (style, word) = if verdict.is_met() { (GOOD, "ok") } else { (BAD, "MISSED") };
        let (name, value, bound) = cells(verdict);
        let _ = writeln!(text, "    {name:24} {value:>10}   {bound:12} {style}{word}{style:#}");
    }
    for (figure, value) in unjudged(outcome) {
        let _ = writeln!(text, "    {:24} {:>10}", figure.name(), number(value));
    }
}

/// The figures of a sweep, each over its column.
fn heads(text: &mut String, sweep: &Sweep) {
    let _ = write!(text, "{HEAD}{:16}", sweep.name);
    for verdict in sweep.points.iter().take(1).flat_map(|first| &first.judged.verdicts) {
        let _ = write!(text, "  {:25}", verdict.goal.figure().name());
    }
    let _ = writeln!(text, "{HEAD:#}");
}

fn point(text: &mut String, outcome: &Outcome) {
    let _ = write!(text, "{:16}", outcome.case.name);
    for verdict in &outcome.judged.verdicts {
        let (_, value, bound) = cells(verdict);
        let (style, word) = if verdict.is_met() { (GOOD, "ok") } else { (BAD, "MISSED") };
        let _ = write!(text, "  {value:>7} {bound:9} {style}{word:7}{style:#}");
    }
    text.push('\n');
}

/// The figures that no goal is about, where they mean something in that world.
fn unjudged(outcome: &Outcome) -> impl Iterator<Item = (Figure, f64)> {
    let Outcome { case, judged } = outcome;
    let is_judged = |figure| judged.verdicts.iter().any(|verdict| verdict.goal.figure() == figure);
    let has_quiet = case.world.quiet_asks_every.is_some();
    let has_equals = matches!(case.world.workload, Workload::Busy { .. } | Workload::Walk { .. });
    let is_told = move |figure: &Figure| match figure {
        Figure::QuietP50 | Figure::QuietP99 | Figure::QuietMax => has_quiet,
        Figure::JainSlotTime | Figure::JainLeaseTime | Figure::Spread => has_equals,
        _ => true,
    };
    let others = Figure::ALL.into_iter().filter(move |figure| !is_judged(*figure)).filter(is_told);
    others.filter_map(|figure| Some((figure, judged.value(figure)?)))
}

fn cells(verdict: &Verdict) -> (&'static str, String, String) {
    let sign = if matches!(verdict.goal, Goal::AtLeast(..)) { ">=" } else { "<=" };
    let bound = format!("{sign} {}", number(verdict.goal.bound()));
    (verdict.goal.figure().name(), number(verdict.value), bound)
}

/// As precise as people compare.
fn number(value: f64) -> String {
    match value {
        value if value.is_infinite() => "endless".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

/// Every figure of every world, a line each.
pub fn csv(outcomes: &[Outcome]) -> String {
    let mut csv = "world,sweep,at,figure,value,goal,bound,reached\n".to_owned();
    for Outcome { case, judged } in outcomes {
        let (sweep, at) = case.sweep.map_or(("", String::new()), |(sweep, at)| (sweep, at.to_string()));
        for figure in Figure::ALL {
            let Some(value) = judged.value(figure) else { continue };
            let verdict = judged.verdicts.iter().find(|verdict| verdict.goal.figure() == figure);
            let goal = verdict.map_or(String::from(",,"), |verdict| {
                let sign = if matches!(verdict.goal, Goal::AtLeast(..)) { "at least" } else { "at most" };
                format!("{sign},{},{}", verdict.goal.bound(), verdict.is_met())
            });
            let name = figure.name().replace(',', "");
            let _ = writeln!(csv, "{},{sweep},{at},{name},{value},{goal}", case.name);
        }
    }
    csv
}

/// The block of the page.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut page = "## Worlds\n\n![what each world has reached](performance/worlds.svg)\n\n".to_owned();
    page.push_str("| world | what happens | figure | reached | to reach |\n|---|---|---|---|---|\n");
    for outcome in outcomes.iter().filter(|outcome| outcome.case.sweep.is_none()) {
        for (nth, verdict) in outcome.judged.verdicts.iter().enumerate() {
            let (name, about) = if nth == 0 {
                (format!("`{}`", outcome.case.name), outcome.case.about.as_str())
            } else {
                (String::new(), "")
            };
            let (figure, value, bound) = cells(verdict);
            let _ = writeln!(page, "| {name} | {about} | {figure} | {} | {bound} |", marked(verdict, value));
        }
    }
    for sweep in sweeps(outcomes) {
        markdown_sweep(&mut page, &sweep);
    }
    page
}

fn markdown_sweep(page: &mut String, sweep: &Sweep) {
    let _ = write!(
        page,
        "\n## {}\n\n![{}](performance/{}.svg)\n\n| |",
        title(sweep.name),
        title(sweep.name),
        sweep.name
    );
    let goals = || sweep.points.iter().take(1).flat_map(|first| &first.judged.verdicts);
    goals().for_each(|verdict| {
        let _ = write!(page, " {} |", verdict.goal.figure().name());
    });
    page.push_str("\n|---|");
    goals().for_each(|_| page.push_str("---|"));
    page.push('\n');
    for outcome in &sweep.points {
        let _ = write!(page, "| {} |", outcome.case.about);
        for verdict in &outcome.judged.verdicts {
            let (_, value, bound) = cells(verdict);
            let _ = write!(page, " {} ({bound}) |", marked(verdict, value));
        }
        page.push('\n');
    }
}

/// What was missed stands out.
fn marked(verdict: &Verdict, value: String) -> String {
    if verdict.is_met() { value } else { format!("**{value}, missed**") }
}

#[cfg(test)]
mod tests {
    use pool_explore::simulate::cases;

    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let few =
            cases().into_iter().filter(|case| ["cold", "slots-1", "slots-2"].contains(&case.name.as_str()));
        few.map(|case| Outcome { judged: case.run().unwrap(), case }).collect()
    }

    #[test]
    fn each_figure_stands_beside_what_is_to_be_reached() {
        let outcomes = outcomes();
        let text = text(&outcomes);
        assert!(text.contains("<= 400") && text.contains("slots-2"), "{text}");
        let csv = csv(&outcomes);
        assert!(csv.lines().all(|line| line.split(',').count() == 8), "{csv}");
        let page = markdown(&outcomes);
        assert!(page.contains("| `cold` |") && page.contains("performance/slots.svg"), "{page}");
        let columns = |line: &str| line.matches('|').count();
        let sweep: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("| |")).collect();
        assert!(sweep.iter().all(|line| columns(line) == columns(sweep[0])), "{page}");
    }

    #[test]
    fn numbers_are_as_precise_as_people_compare() {
        assert_eq!(
            [0.7512, 36.875, 1437.964, f64::INFINITY].map(number),
            ["0.751", "36.9", "1438", "endless"]
        );
    }
}
