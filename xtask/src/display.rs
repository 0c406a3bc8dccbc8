//! What a command says: all of it goes through here, so colours vanish in a pipe, and a reader that goes away (`| head`) ends the
//! output and not the run.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};

const BAD: Style = AnsiColor::Red.on_default().bold();

/// Says a line on standard output.
pub fn say(line: &str) {
    let mut out = anstream::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush(); // a child may write next
}

/// Says what stopped a command, on standard error.
pub fn complain(why: &str) {
    let _ = writeln!(anstream::stderr(), "{BAD}error{BAD:#}: {why}");
}
