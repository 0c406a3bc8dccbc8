//! Rule `file-size`: a file holds one idea, and one past 500 lines asks for a split.

use std::path::Path;

use super::Violation;
use super::files::SourceFile;

/// More lines than this need a reason.
const MOST_LINES: usize = 500;

/// Files that may be longer, each with its reason.
pub(super) const LONGER: &[(&str, &str)] = &[];

/// Looks at the length of every file.
pub fn check(sources: &[SourceFile]) -> Vec<Violation> {
    check_against(LONGER, sources)
}

fn check_against(longer: &[(&str, &str)], sources: &[SourceFile]) -> Vec<Violation> {
    let allowed = |path: &Path| longer.iter().any(|(name, _)| Path::new(name) == path);
    let too_long =
        sources.iter().filter(|source| source.text.lines().count() > MOST_LINES && !allowed(&source.path));
    let long = too_long.map(|source| {
        let lines = source.text.lines().count();
        let remedy = "split it by idea, or give its reason in `LONGER` of xtask/src/tidy/size.rs";
        source.violation(
            MOST_LINES + 1,
            "file-size",
            format!("{lines} lines, {MOST_LINES} at most"),
            remedy.into(),
        )
    });
    let stale = longer.iter().filter_map(|(name, _)| {
        let needed = |s: &&SourceFile| s.path == Path::new(name) && s.text.lines().count() > MOST_LINES;
        (!sources.iter().any(|source| needed(&source))).then(|| Violation {
            file: "xtask/src/tidy/size.rs".into(),
            line: 1,
            rule: "file-size",
            what: format!("`{name}` is allowed to be long and is not"),
            remedy: "take its row out of `LONGER`".into(),
        })
    });
    long.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::{SourceFile, check_against};

    fn source(lines: usize) -> SourceFile {
        SourceFile { path: "crates/x/src/lib.rs".into(), text: "// line\n".repeat(lines) }
    }

    #[test]
    fn the_line_after_the_last_allowed_one_is_the_violation() {
        assert!(check_against(&[], &[source(500)]).is_empty());
        let found = check_against(&[], &[source(501)]);
        assert_eq!((found.len(), found[0].line), (1, 501));
    }

    #[test]
    fn a_reason_allows_and_a_reason_without_need_does_not_stay() {
        let table = [("crates/x/src/lib.rs", "generated from the standard's table")];
        assert!(check_against(&table, &[source(501)]).is_empty());
        assert!(check_against(&table, &[source(10)])[0].what.contains("is not"));
    }
}
