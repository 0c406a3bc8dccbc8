//! Rule `clauses`: every clause of the contract has a test, and every test that is named for a clause has its clause.
//!
//! A promise without a test is a hope, and a test named for a clause that is gone proves what nobody promises.

use std::collections::BTreeSet;

use super::Violation;
use super::files::SourceFile;
use super::tokens;

/// Where the promises are written down.
pub const CONTRACT: &str = "docs/contract.md";

/// A clause as the contract has it: `### B1 the budget` and below it lines like ``- test: `b1_…` ``.
#[derive(Debug)]
struct Clause {
    id: String,
    line: usize,
    tests: Vec<(usize, String)>,
}

/// Compares the contract with the functions in the sources.
pub fn check(contract: Option<&str>, sources: &[SourceFile]) -> Vec<Violation> {
    let Some(contract) = contract else {
        let remedy = "write it: a heading `### B1 what is promised` for each clause, with lines like \"- test: `name`\"";
        return vec![broken(1, "the contract is missing".into(), remedy)];
    };
    let clauses = read(contract);
    let mut found = Vec::new();
    if clauses.is_empty() {
        found.push(broken(
            1,
            "no clause found".into(),
            "give each clause a heading like `### B1 what is promised`",
        ));
    }
    found.extend(twice(&clauses));
    found.extend(without_test(&clauses, sources));
    found.extend(without_clause(&clauses, sources));
    found
}

fn read(contract: &str) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = Vec::new();
    let mut fenced = false;
    for (line, text) in (1..).zip(contract.lines()) {
        fenced ^= text.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        if let Some(id) = clause_heading(text) {
            clauses.push(Clause { id: id.to_owned(), line, tests: Vec::new() });
        } else if let (Some(clause), Some(test)) = (clauses.last_mut(), test_line(text)) {
            clause.tests.push((line, test.to_owned()));
        }
    }
    clauses
}

/// `### B1 …` gives `B1`.
fn clause_heading(line: &str) -> Option<&str> {
    let (id, _) = line.strip_prefix("### ")?.split_once(' ')?;
    is_id(id, |letter| letter.is_ascii_uppercase()).then_some(id)
}

/// ``- test: `module::name` `` gives `name`.
fn test_line(line: &str) -> Option<&str> {
    let (path, _) = line.trim_start().strip_prefix("- test: `")?.split_once('`')?;
    path.rsplit("::").next()
}

fn is_id(id: &str, letter: impl Fn(char) -> bool) -> bool {
    let mut chars = id.chars();
    chars.next().is_some_and(letter)
        && chars.next().is_some_and(|c| c.is_ascii_digit())
        && chars.next().is_none()
}

fn twice(clauses: &[Clause]) -> Vec<Violation> {
    let mut seen = BTreeSet::new();
    let repeated = clauses.iter().filter(|clause| !seen.insert(&clause.id));
    let remedy = "give one of the two another id";
    repeated
        .map(|clause| broken(clause.line, format!("clause {} is there twice", clause.id), remedy))
        .collect()
}

fn without_test(clauses: &[Clause], sources: &[SourceFile]) -> Vec<Violation> {
    let names: BTreeSet<String> = functions(sources).map(|(_, function)| function.name).collect();
    let mut found = Vec::new();
    for clause in clauses {
        let id = &clause.id;
        if clause.tests.is_empty() {
            let what = format!("clause {id} names no test");
            found.push(broken(
                clause.line,
                what,
                "add a line \"- test: `name`\" with the test that proves it",
            ));
        }
        for (line, test) in clause.tests.iter().filter(|(_, test)| !names.contains(test)) {
            let what = format!("clause {id} names the test `{test}`, and there is no `fn {test}`");
            found.push(broken(*line, what, "write that test, or name the one that proves the clause"));
        }
    }
    found
}

fn without_clause(clauses: &[Clause], sources: &[SourceFile]) -> Vec<Violation> {
    let ids: BTreeSet<&str> = clauses.iter().map(|clause| clause.id.as_str()).collect();
    let named =
        functions(sources).filter(|(_, function)| function.is_test).filter_map(|(source, function)| {
            let id = function.name.split_once('_').map(|(id, _)| id)?;
            let id = is_id(id, |letter| letter.is_ascii_lowercase()).then(|| id.to_uppercase())?;
            (!ids.contains(id.as_str())).then(|| {
                let what =
                    format!("`{}` is named for clause {id}, which {CONTRACT} does not have", function.name);
                let remedy = format!("add the clause {id}, or name the test for what it proves");
                source.violation(function.line, "clauses", what, remedy)
            })
        });
    named.collect()
}

fn functions(sources: &[SourceFile]) -> impl Iterator<Item = (&SourceFile, tokens::Function)> {
    // A file that is no Rust is a violation of its own, see `super::unreadable`.
    let parsed = sources.iter().filter_map(|source| Some((source, tokens::parse(&source.text).ok()?)));
    parsed.flat_map(|(source, stream)| {
        tokens::functions(stream).into_iter().map(move |function| (source, function))
    })
}

fn broken(line: usize, what: String, remedy: &str) -> Violation {
    Violation { file: CONTRACT.into(), line, rule: "clauses", what, remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{SourceFile, check};

    const TESTS: &str = "#[test]\nfn b1_holds() {}\nfn h2_client() {}\n";

    fn sources(text: &str) -> [SourceFile; 1] {
        [SourceFile { path: "tests/limits.rs".into(), text: text.into() }]
    }

    #[test]
    fn a_contract_that_is_proven_is_in_order() {
        let contract = "# Contract\n### B1 the budget\nText.\n- test: `limits::b1_holds`\n- test: `h2_client`\n### Notes\n";
        assert!(check(Some(contract), &sources(TESTS)).is_empty());
    }

    #[rstest]
    #[case::no_contract(None, TESTS, "docs/contract.md:1", "missing")]
    #[case::no_clause(Some("# Contract\n"), "", "docs/contract.md:1", "no clause")]
    #[case::no_test(Some("### B1 x\n"), TESTS, "docs/contract.md:1", "B1 names no test")]
    #[case::only_in_an_example(
        Some("### B1 x\n```\n- test: `b1_holds`\n```\n"),
        TESTS,
        "docs/contract.md:1",
        "names no test"
    )]
    #[case::absent(Some("### B1 x\n- test: `b1_gone`\n"), TESTS, "docs/contract.md:2", "no `fn b1_gone`")]
    #[case::in_a_comment(
        Some("### B1 x\n- test: `b1_c`\n"),
        "// fn b1_c() {}\n",
        "docs/contract.md:2",
        "no `fn b1_c`"
    )]
    #[case::twice(
        Some("### B1 x\n- test: `b1_holds`\n### B1 y\n- test: `b1_holds`\n"),
        TESTS,
        "docs/contract.md:3",
        "twice"
    )]
    #[case::no_such_clause(
        Some("### B1 x\n- test: `b1_holds`\n"),
        "#[test]\nfn b1_holds() {}\n#[tokio::test]\nasync fn w9_queue() {}\n",
        "tests/limits.rs:4",
        "clause W9"
    )]
    fn it_bites(#[case] contract: Option<&str>, #[case] code: &str, #[case] place: &str, #[case] what: &str) {
        let found = check(contract, &sources(code));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(format!("{}:{}", found[0].file.display(), found[0].line), place);
        assert!(found[0].what.contains(what), "{}", found[0].what);
    }
}
