//! The source files that the rules look at.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::Violation;

/// A Rust file of the workspace.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Relative to the root of the workspace.
    pub path: PathBuf,
    /// What it holds.
    pub text: String,
}

impl SourceFile {
    /// A violation in this file.
    pub fn violation(&self, line: usize, rule: &'static str, what: String, remedy: String) -> Violation {
        Violation { file: self.path.clone(), line, rule, what, remedy }
    }
}

/// All Rust files under `root`, in the order of their paths.
///
/// Hidden directories are left out, and so is everything that cargo built, wherever it was told to: it marks its target
/// directories with a `CACHEDIR.TAG`.
///
/// # Errors
/// When a directory or a file cannot be read.
pub fn rust_sources(root: &Path) -> io::Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path)?;
            found.push(SourceFile { path: path.strip_prefix(root).unwrap_or(path).to_owned(), text });
        }
        Ok(())
    })?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !hidden && !path.join("CACHEDIR.TAG").exists() {
                walk(&path, visit)?;
            }
        } else {
            visit(&path)?;
        }
    }
    Ok(())
}
