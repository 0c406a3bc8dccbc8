//! Pages of the documentation of which a command writes a part: what stands between two lines.

use std::fs;

use xtask::failure::Failure;
use xtask::process::workspace_root;

/// The page that shows figures.
pub const PERFORMANCE: &str = "docs/performance.md";
/// Ends every block.
const END: &str = "<!-- end -->";

/// Puts another text between the line `begin` and the next end in `page`, which is named from the root.
///
/// # Errors
/// [`Failure::Infrastructure`] when the page cannot be read or written, or has no such lines.
pub fn write_block(page: &str, begin: &str, block: &str) -> Result<(), Failure> {
    let path = workspace_root().join(page);
    let text = fs::read_to_string(&path).map_err(|why| Failure::while_doing(&format!("read {page}"), why))?;
    let Some(text) = with_block(&text, begin, block) else {
        return Err(Failure::Infrastructure(format!("{page} has no lines `{begin}` and `{END}`")));
    };
    fs::write(&path, text).map_err(|why| Failure::while_doing(&format!("write {page}"), why))
}

/// A page with another text between the two lines.
fn with_block(page: &str, begin: &str, block: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n\n{block}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{END, with_block};

    #[test]
    fn a_page_keeps_what_stands_around_the_block() {
        let page = format!("# A\n<!-- a -->\nold\n{END}\nB\n<!-- c -->\nC\n{END}\nD\n");
        let new = with_block(&page, "<!-- a -->", "new").unwrap();
        assert_eq!(new, format!("# A\n<!-- a -->\n\nnew\n{END}\nB\n<!-- c -->\nC\n{END}\nD\n"));
        assert_eq!(with_block(&new, "<!-- a -->", "new").as_ref(), Some(&new));
        let last = with_block(&page, "<!-- c -->", "new").unwrap();
        assert_eq!(last, format!("# A\n<!-- a -->\nold\n{END}\nB\n<!-- c -->\n\nnew\n{END}\nD\n"));
        assert_eq!(with_block("# A\n", "<!-- a -->", "new"), None);
    }
}
