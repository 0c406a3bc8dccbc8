//! The properties: plain functions from bytes to a verdict, so that an ordinary test, a property test and a fuzz
//! target ask the same.

use pool_core::{
    DATABASE_NAME_BYTES_MAX, DatabaseName, DatabaseNaming, PrefixNaming, WORKSPACE_ID_BYTES_MAX, WorkspaceId,
};

/// What must be true of every id: it is refused with an error that says why, or it is kept byte for byte, can be
/// shown without harm, and has a name that the server keeps whole.
///
/// # Errors
/// What is not true.
pub fn check_workspace_id(id: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(id) else { return Ok(()) };
    let is_good = !text.is_empty() && text.len() <= WORKSPACE_ID_BYTES_MAX && !text.contains('\0');
    match WorkspaceId::new(text) {
        Ok(id) => {
            holds(is_good, || format!("an id that is none was taken: {text:?}"))?;
            holds(id.as_str() == text, || format!("{text:?} became {id}"))?;
            holds(is_harmless(&format!("{id} {id:?}")), || {
                format!("{text:?} is shown with signs that do harm")
            })?;
            let again: Result<WorkspaceId, _> = id.as_str().parse();
            holds(again.as_ref() == Ok(&id), || format!("{text:?} is not the same when parsed again"))?;
            let naming = PrefixNaming::new("fuzz").map_err(|error| error.to_string())?;
            check_name(&naming, &id).map(drop)
        }
        Err(error) => {
            holds(!is_good, || format!("a good id was refused: {error}"))?;
            let told = error.to_string();
            let says_why = ["empty", "bytes", "NUL"].iter().any(|why| told.contains(why));
            holds(says_why && told.len() < 200 && is_harmless(&told), || format!("no clear error: {told:?}"))
        }
    }
}

/// What must be true of the name that a scheme gives to `id`: the server keeps it whole, its quoted form means
/// that name and nothing else, and it is the same each time. Returns the name; that no two ids share one is for
/// the caller to see.
///
/// # Errors
/// What is not true.
pub fn check_name(naming: &dyn DatabaseNaming, id: &WorkspaceId) -> Result<DatabaseName, String> {
    let name = naming.database(id);
    let text = name.as_str();
    holds(!text.is_empty() && text.len() <= DATABASE_NAME_BYTES_MAX, || {
        format!("{id}: {} bytes", text.len())
    })?;
    holds(!text.contains('\0'), || format!("{id}: a NUL in the name"))?;
    holds(unquoted(&name.quoted()).as_deref() == Some(text), || {
        format!("{id}: {} says more", name.quoted())
    })?;
    holds(naming.database(id) == name, || format!("{id}: another name the second time"))?;
    Ok(name)
}

/// What a quoted identifier means to the server, if it is one and nothing follows it.
fn unquoted(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let is_one = inner.split("\"\"").all(|part| !part.contains('"'));
    is_one.then(|| inner.replace("\"\"", "\""))
}

/// Whether nothing in it forges a line, moves a cursor, or turns the direction of writing.
fn is_harmless(shown: &str) -> bool {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    !shown.chars().any(|c| c.is_control() || turns(c))
}

pub(super) fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}
