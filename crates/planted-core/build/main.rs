//! Copies the sources of `pool-core`, and plants the bugs in the copy.

mod bugs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use bugs::{BUGS, Bug, Edit, PLAIN};

const CORE: &str = "../pool-core/src";
/// The module that says which bug is planted.
const MODULE: &str = "src/planted.rs";

fn main() {
    let planted = PathBuf::from(env::var_os("OUT_DIR").expect("cargo gives one")).join("planted");
    if planted.exists() {
        fs::remove_dir_all(&planted).expect("an older copy can be removed");
    }
    for place in [CORE, MODULE, "build"] {
        println!("cargo::rerun-if-changed={place}");
    }
    let mut edited: BTreeSet<&str> = BTreeSet::new();
    for source in sources(Path::new(CORE)) {
        let name = source.strip_prefix(CORE).expect("it lies there");
        let mut text = fs::read_to_string(&source).expect("a source can be read");
        let edits = PLAIN.iter().chain(BUGS.iter().flat_map(|bug| bug.edits));
        for edit in edits.filter(|edit| Path::new(edit.file) == name) {
            text = changed(text, edit);
            edited.insert(edit.file);
        }
        write(&planted.join(name), &code_of(&text));
    }
    for edit in PLAIN.iter().chain(BUGS.iter().flat_map(|bug| bug.edits)) {
        assert!(edited.contains(edit.file), "{}: pool-core has no such source any more", edit.file);
    }
    let module = fs::read_to_string(MODULE).expect("it lies there").replace("BUGS\n", &list(BUGS));
    write(&planted.join("registry/planted.rs"), &module);
}

/// The text after an edit, whose place must be there once.
fn changed(text: String, edit: &Edit) -> String {
    let Edit { file, find, put } = edit;
    let places = text.matches(find).count();
    assert!(
        places == 1,
        "{file}: this is there {places} times, and a bug is planted in its place; say in build/bugs.rs how it is planted now:\n{find}"
    );
    text.replace(find, put)
}

/// A text that is included has no page of its own, and what is tested where it stands is not tested again.
fn code_of(text: &str) -> String {
    let (code, _) = text.split_once("\n#[cfg(test)]\nmod tests").unwrap_or((text, ""));
    code.lines().skip_while(|line| line.starts_with("//!")).map(|line| format!("{line}\n")).collect()
}

/// The enum of all bugs.
fn list(bugs: &[Bug]) -> String {
    let variants: String =
        bugs.iter().map(|bug| format!("    /// {}\n    {},\n", bug.what, bug.name)).collect();
    format!(
        "/// A bug that can be planted.\n#[derive(Clone, Copy, Debug, PartialEq, Eq)]\npub enum Bug {{\n{variants}}}\n"
    )
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("pool-core lies beside") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("a folder can be made");
    fs::write(path, text).expect("a copy can be written");
}
