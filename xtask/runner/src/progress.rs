//! What a person watches while something takes its time: a spinner, a bar, or plain lines where nobody watches.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use xtask::display::say;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Whether a person watches.
fn watched() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

/// Shows that something is going on until it is done.
pub fn spinner(doing: &str) -> ProgressBar {
    if !watched() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(doing.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Shows how far the cases are.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    running: BTreeSet<String>,
}

impl Progress {
    /// Begins with none of `cases` done.
    pub fn start(cases: usize) -> Self {
        Self { bar: watched().then(|| case_bar(cases)), running: BTreeSet::new() }
    }

    /// Shows nothing.
    #[cfg(test)]
    pub fn silent() -> Self {
        Self { bar: Some(ProgressBar::hidden()), running: BTreeSet::new() }
    }

    /// A case has begun.
    pub fn started(&mut self, path: &str) {
        self.running.insert(path.to_owned());
        self.show_running();
    }

    /// A case has ended. On a terminal only a failed one leaves a line; the bar counts the others.
    pub fn finished(&mut self, path: &str, passed: bool, time: Option<Duration>) {
        self.running.remove(path);
        let (style, word) = if passed { (GOOD, "ok    ") } else { (BAD, "FAILED") };
        let time = time.map(|time| format!(" ({:.2}s)", time.as_secs_f64())).unwrap_or_default();
        let line = format!("  {style}{word}{style:#} {path}{time}");
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                if !passed {
                    bar.println(line);
                }
            }
            None => say(&line),
        }
        self.show_running();
    }

    /// A line of the runner's own.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line),
        }
    }

    fn show_running(&self) {
        if let Some(bar) = &self.bar {
            let names: Vec<&str> = self.running.iter().map(String::as_str).collect();
            bar.set_message(names.join(", "));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn case_bar(cases: usize) -> ProgressBar {
    let bar = ProgressBar::new(cases as u64);
    // A template that does not parse would only cost its looks.
    if let Ok(style) = ProgressStyle::with_template("{bar:24.green} {pos}/{len} {elapsed} {wide_msg:.dim}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
