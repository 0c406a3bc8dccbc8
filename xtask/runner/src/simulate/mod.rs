//! `cargo xtask simulate`: runs the worlds of `pool_explore::simulate`, and tells each figure beside what is to be reached.

mod plots;
mod sweeps;
mod tables;

use std::fs;
use std::path::Path;

use anstyle::{AnsiColor, Style};
use pool_explore::simulate::{Case, Judged, cases};
use xtask::cli::Simulate;
use xtask::display::{complain, say};
use xtask::failure::Failure;
use xtask::process::workspace_root;

use crate::page;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Where the plots of the page lie.
const PAGE_PLOTS: &str = "docs/performance";
/// The block of the page begins with this line.
const BEGIN: &str = "<!-- cargo xtask simulate --write-docs -->";

/// A case and what came of it.
pub struct Outcome {
    case: Case,
    judged: Judged,
}

/// Runs the worlds that were asked for.
///
/// # Errors
/// [`Failure::FOUND`] when a goal was missed or a law broken, [`Failure::Usage`] for a world that does not exist,
/// [`Failure::Infrastructure`] when something cannot be written.
pub fn simulate(asked: &Simulate) -> Result<(), Failure> {
    let chosen = choose(cases(), &asked.worlds)?;
    if asked.list {
        for case in chosen {
            say(&format!("{:18} {}", case.name, case.about));
        }
        return Ok(());
    }
    let mut outcomes = Vec::new();
    let mut broken = 0;
    for case in chosen {
        match case.run() {
            Ok(judged) => outcomes.push(Outcome { case, judged }),
            Err(law) => {
                broken += 1;
                complain(&format!("{}: {law}", case.name));
            }
        }
    }
    say(&tables::text(&outcomes));
    if let Some(file) = &asked.csv {
        write(file, &tables::csv(&outcomes))?;
    }
    if let Some(directory) = &asked.plots {
        draw(directory, &outcomes)?;
    }
    if asked.write_docs {
        draw(&workspace_root().join(PAGE_PLOTS), &outcomes)?;
        page::write_block(page::PERFORMANCE, BEGIN, &tables::markdown(&outcomes))?;
    }
    conclude(&outcomes, broken)
}

fn conclude(outcomes: &[Outcome], broken: usize) -> Result<(), Failure> {
    let goals: usize = outcomes.iter().map(|outcome| outcome.judged.verdicts.len()).sum();
    let missed: usize = outcomes.iter().map(|outcome| outcome.judged.missed().count()).sum();
    let (style, worlds) = (if missed + broken == 0 { GOOD } else { BAD }, outcomes.len() + broken);
    say(&format!(
        "{style}simulate{style:#}: {worlds} worlds, {} of {goals} goals reached, {missed} missed, {broken} laws broken",
        goals - missed
    ));
    if missed + broken == 0 { Ok(()) } else { Err(Failure::FOUND) }
}

/// The cases of these names, or all.
fn choose(all: Vec<Case>, names: &[String]) -> Result<Vec<Case>, Failure> {
    let is_called =
        |case: &Case, name: &str| case.name == name || case.sweep.is_some_and(|(sweep, _)| sweep == name);
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|case| is_called(case, name))) {
        let known = all.iter().map(|case| case.name.as_str());
        let nearest = known.max_by(|a, b| {
            let alike = |name| strsim::jaro_winkler(unknown, name);
            alike(a).total_cmp(&alike(b))
        });
        let hint = nearest.map(|name| format!(" (is it `{name}`?)")).unwrap_or_default();
        return Err(Failure::Usage(format!("there is no world `{unknown}`{hint}; `--list` shows all")));
    }
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| is_called(case, name));
    Ok(all.into_iter().filter(wanted).collect())
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|why| Failure::while_doing(&format!("write {}", file.display()), why))
}

fn draw(directory: &Path, outcomes: &[Outcome]) -> Result<(), Failure> {
    fs::create_dir_all(directory)
        .map_err(|why| Failure::while_doing(&format!("make {}", directory.display()), why))?;
    for (name, svg) in plots::all(outcomes) {
        write(&directory.join(format!("{name}.svg")), &svg)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_a_world_or_for_a_sweep() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
            choose(cases(), &asked).unwrap().into_iter().map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["cold"]), ["cold"]);
        assert_eq!(names(&["permits"]).len(), 5);
        assert_eq!(names(&["permits-4", "cold"]), ["cold", "permits-4"]);
        assert_eq!(names(&[]).len(), cases().len());
        let wrong = choose(cases(), &["colt".to_owned()]).unwrap_err();
        assert_eq!((wrong.code(), wrong.to_string().contains("`cold`?")), (2, true), "{wrong}");
    }
}
