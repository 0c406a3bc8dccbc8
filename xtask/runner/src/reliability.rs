//! `cargo xtask reliability`: runs the fault matrix, and writes the table in docs/reliability.md from what it observed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anstyle::Style;
use pool_testkit::faults::{RELIABILITY_ENV, Row, read_rows};
use xtask::display::{complain, say};
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo, workspace_root};
use xtask::tidy::{RELIABILITY_TABLE, fault_tests};

use crate::scratch;

const HEAD: Style = Style::new().bold();

/// The head of the table, which is replaced in a page that says what it means.
const COLUMNS: &str = "| fault | law | seen by callers | other workspaces | recovery | leaked | test |\n|---|---|---|---|---|---|---|\n";

/// Runs the matrix and writes the table.
///
/// # Errors
/// [`Failure::FOUND`] when a test failed or left no row, [`Failure::Infrastructure`] when the table cannot be written.
pub fn reliability(interrupts: &Interrupts) -> Result<(), Failure> {
    let rows = scratch::directory("the rows")?;
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--test", "faults"]);
    command.args(["--", "--test-threads", "2"]); // on one thread, a test does not know its name
    command.env(RELIABILITY_ENV, rows.path());
    let passed = interrupts.run(&mut command)?.success();
    let rows = read_rows(rows.path()).map_err(|why| Failure::while_doing("read the rows", why))?;
    let (rows, missing) = in_order(fault_tests(&workspace_root())?, rows);
    for test in &missing {
        complain(&format!("`{test}` has left no row"));
    }
    let table = table(&rows);
    say(&format!("\n{HEAD}faults{HEAD:#}\n\n{table}"));
    if !passed || !missing.is_empty() || rows.is_empty() {
        complain(&format!("{RELIABILITY_TABLE} is left as it was"));
        return Err(Failure::FOUND);
    }
    let path = workspace_root().join(RELIABILITY_TABLE);
    let page = fs::read_to_string(&path)
        .map_err(|why| Failure::while_doing(&format!("read {}", path.display()), why))?;
    let page = with_table(&page, &table)
        .ok_or_else(|| Failure::Infrastructure(format!("{RELIABILITY_TABLE} has no table to replace")))?;
    fs::write(&path, page).map_err(|why| Failure::while_doing(&format!("write {}", path.display()), why))?;
    say(&format!("{} rows, written to {RELIABILITY_TABLE}", rows.len()));
    Ok(())
}

/// The rows in the order of their tests, and the tests without one.
fn in_order(tests: Vec<String>, rows: Vec<Row>) -> (Vec<Row>, Vec<String>) {
    let mut by_test: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.test.clone(), row)).collect();
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for test in tests {
        match by_test.remove(&test) {
            Some(row) => found.push(row),
            None => missing.push(test),
        }
    }
    (found, missing)
}

/// The page with another table in the place of its own.
fn with_table(page: &str, table: &str) -> Option<String> {
    let (before, old) = page.split_once(COLUMNS)?;
    let after = old.find("\n\n").map_or("", |end| &old[end + 1..]);
    Some(format!("{before}{table}{after}"))
}

fn table(rows: &[Row]) -> String {
    let mut table = COLUMNS.to_owned();
    for row in rows {
        let Row { test, fault, law, seen, others, recovery, leaked } = row;
        let cells = [fault, law, seen, others].map(|cell| cell.replace('|', "\\|")).join(" | ");
        let _ = writeln!(table, "| {cells} | {} | {leaked} | `{test}` |", rounded(*recovery));
    }
    table
}

/// As precise as it is the same next time.
fn rounded(time: Duration) -> String {
    match time.as_millis() {
        millis if millis >= 1_000 => format!("{:.1} s", time.as_secs_f64()),
        millis if millis >= 10 => format!("{} ms", (millis + 5) / 10 * 10),
        _ => "< 10 ms".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, Duration, Row, in_order, rounded, table, with_table};

    fn row(test: &str) -> Row {
        Row {
            test: test.into(),
            fault: "TCP reset".into(),
            law: "L3".into(),
            seen: "a | b".into(),
            others: "nothing".into(),
            recovery: Duration::from_millis(83),
            leaked: 0,
        }
    }

    #[test]
    fn only_the_table_of_a_page_is_replaced() {
        let page = format!("what it means\n\n{COLUMNS}| old | row |\n\n## More\n");
        let new = table(&[row("a")]);
        assert_eq!(with_table(&page, &new), Some(format!("what it means\n\n{new}\n## More\n")));
        assert_eq!(with_table("no table", &new), None);
    }

    #[test]
    fn rows_stand_in_the_order_of_the_tests_and_a_missing_one_is_named() {
        let tests = ["b", "gone", "a"].map(ToOwned::to_owned).to_vec();
        let (rows, missing) = in_order(tests, vec![row("a"), row("b")]);
        assert_eq!(rows, [row("b"), row("a")]);
        assert_eq!(missing, ["gone"]);
    }

    #[test]
    fn a_row_is_a_line_whatever_it_says() {
        let table = table(&[row("l3_reset")]);
        let last = table.lines().last().unwrap();
        assert_eq!(last, "| TCP reset | L3 | a \\| b | nothing | 80 ms | 0 | `l3_reset` |");
    }

    #[test]
    fn times_are_rounded() {
        let of = |millis| rounded(Duration::from_millis(millis));
        assert_eq!([of(3), of(46), of(1_240)], ["< 10 ms", "50 ms", "1.2 s"]);
    }
}
