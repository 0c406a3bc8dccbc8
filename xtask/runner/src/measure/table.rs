//! Figures as lines for a terminal and as a table for the page.

use std::fmt::Write as _;

use anstyle::Style;
use pool_testkit::run::{Goal, Measured};

use super::{BAD, GOOD};

const HEAD: Style = Style::new().bold();

/// What stands over the figures of a world.
pub fn head(figure: &Measured) -> String {
    format!("\n{HEAD}{}{HEAD:#}  {}", figure.world, figure.about)
}

/// One figure, what is to be reached, and whether it is.
pub fn line(figure: &Measured) -> String {
    let Measured { figure: name, value, .. } = figure;
    let (value, spread, goal) = (number(*value), spread(figure), goal(figure));
    let (style, word) = match (figure.goal, figure.is_met()) {
        (None, _) => (Style::new(), ""),
        (_, true) => (GOOD, "ok"),
        (_, false) => (BAD, "MISSED"),
    };
    let line = format!("    {name:44} {value:>8}  {spread:16} {goal:9} {style}{word}{style:#}");
    line.trim_end().to_owned()
}

/// The block of the page.
pub fn markdown(measured: &[Measured], seconds: u64) -> String {
    let mut page = format!(
        "Each contestant worked for {seconds} s.\n\n\
         | world | what happens | figure | reached | rounds | to reach |\n|---|---|---|---|---|---|\n"
    );
    let mut last = "";
    for figure in measured {
        let (world, about) = if figure.world == last {
            (String::new(), "")
        } else {
            (format!("`{}`", figure.world), figure.about.as_str())
        };
        last = &figure.world;
        let value = number(figure.value);
        let value = if figure.is_met() { value } else { format!("**{value}, missed**") };
        let (name, spread, goal) = (&figure.figure, spread(figure), goal(figure));
        let _ = writeln!(page, "| {world} | {about} | {name} | {value} | {spread} | {goal} |");
    }
    page
}

fn spread(figure: &Measured) -> String {
    figure.spread.map(|(least, most)| format!("{} to {}", number(least), number(most))).unwrap_or_default()
}

fn goal(figure: &Measured) -> String {
    match figure.goal {
        None => String::new(),
        Some(Goal::AtLeast(bound)) => format!(">= {}", number(bound)),
        Some(Goal::AtMost(bound)) => format!("<= {}", number(bound)),
    }
}

/// As precise as people compare.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, goal: Option<Goal>) -> Measured {
        let (world, about, figure) = ("loud".into(), "many".into(), "quiet p99, ms".into());
        Measured { world, about, figure, value, spread: Some((1.0, 250.0)), goal }
    }

    #[test]
    fn a_figure_stands_beside_what_is_to_be_reached() {
        let line = |value, goal| {
            let line = line(&figure(value, goal));
            anstream::adapter::strip_str(&line).to_string().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let goal = Some(Goal::AtMost(100.0));
        assert_eq!(line(85.54, goal), "quiet p99, ms 85.5 1.000 to 250 <= 100 ok");
        assert_eq!(line(105.9, goal), "quiet p99, ms 106 1.000 to 250 <= 100 MISSED");
        assert_eq!(line(0.0, None), "quiet p99, ms 0 1.000 to 250");
    }

    #[test]
    fn a_world_is_named_once_on_the_page_and_what_was_missed_stands_out() {
        let page = markdown(&[figure(105.9, Some(Goal::AtMost(100.0))), figure(3.0, None)], 20);
        assert_eq!(page.matches("`loud`").count(), 1, "{page}");
        assert!(page.contains("**106, missed** | 1.000 to 250 | <= 100 |"), "{page}");
        let columns = |line: &str| line.matches('|').count();
        assert!(page.lines().skip(2).all(|line| columns(line) == 7), "{page}");
    }
}
