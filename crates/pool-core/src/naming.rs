//! Workspace id to database name. The default scheme is injective: a short plain id is readable in the
//! name, every other id becomes a slug and a 130-bit hash, in a form that a readable name cannot take.

use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::ids::WorkspaceId;

/// Why a database name or a prefix was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NamingError {
    /// Not a name that a server keeps whole.
    #[error("{name:?} cannot be a database name: 1 to {max} bytes without NUL")]
    Name {
        /// What was given.
        name: String,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Not a prefix of readable names.
    #[error("{prefix:?} cannot be a prefix of database names: 1 to {max} characters of a-z, 0-9 and _")]
    Prefix {
        /// What was given.
        prefix: String,
        /// The longest allowed, in bytes.
        max: usize,
    },
}

/// The longest name that `PostgreSQL` keeps whole (`NAMEDATALEN - 1`); longer ones are cut in silence.
pub const DATABASE_NAME_BYTES_MAX: usize = 63;
/// The longest prefix, so that prefix, slug and hash fit into a name.
pub const PREFIX_BYTES_MAX: usize = 20;

const MARK: &str = "_ws_";
const SLUG_BYTES_MAX: usize = 12;
const HASH_CHARS: usize = 26;

/// The name of a database: 1 to 63 bytes without NUL. It is quoted wherever it meets a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatabaseName(Box<str>);

impl DatabaseName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NamingError::Name`] when it is empty, longer than 63 bytes or holds a NUL.
    pub fn new(name: impl AsRef<str>) -> Result<Self, NamingError> {
        let name = name.as_ref();
        if name.is_empty() || name.len() > DATABASE_NAME_BYTES_MAX || name.contains('\0') {
            return Err(NamingError::Name { name: name.to_owned(), max: DATABASE_NAME_BYTES_MAX });
        }
        Ok(Self(name.into()))
    }

    /// The name as the server knows it, unquoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as an SQL identifier: in double quotes, with inner ones doubled.
    ///
    /// ```
    /// let name = pool_core::DatabaseName::new("a\"b")?;
    /// assert_eq!(name.quoted(), "\"a\"\"b\"");
    /// # Ok::<(), pool_core::NamingError>(())
    /// ```
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides which database a workspace lives in. Two different ids must never share one (law I1).
pub trait DatabaseNaming: Send + Sync {
    /// The database of `workspace`. Pure: the same id has the same name for ever.
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName;
}

/// The default scheme: `prefix_ws_id` where the id is `[a-z0-9_]` and fits, else `prefix_ws_slug-hash`.
/// A readable name holds no hyphen, so the two forms never meet.
///
/// ```
/// use pool_core::{DatabaseNaming, PrefixNaming, WorkspaceId};
///
/// let naming = PrefixNaming::new("shop")?;
/// assert_eq!(naming.database(&WorkspaceId::new("acme")?).as_str(), "shop_ws_acme");
/// assert!(naming.database(&WorkspaceId::new("ACME")?).as_str().starts_with("shop_ws_acme-"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixNaming {
    prefix: Box<str>,
}

impl PrefixNaming {
    /// A scheme whose names all start with `prefix`: 1 to 20 characters `[a-z0-9_]`.
    ///
    /// # Errors
    /// [`NamingError::Prefix`] for anything else.
    pub fn new(prefix: impl AsRef<str>) -> Result<Self, NamingError> {
        let prefix = prefix.as_ref();
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(is_plain) {
            return Err(NamingError::Prefix { prefix: prefix.to_owned(), max: PREFIX_BYTES_MAX });
        }
        Ok(Self { prefix: prefix.into() })
    }

    /// What all names of this scheme start with, up to the id.
    pub fn stem(&self) -> String {
        format!("{}{MARK}", self.prefix)
    }
}

impl DatabaseNaming for PrefixNaming {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        let (stem, id) = (self.stem(), workspace.as_str());
        let readable = id.bytes().all(is_plain) && stem.len() + id.len() <= DATABASE_NAME_BYTES_MAX;
        let name = if readable { stem + id } else { format!("{stem}{}-{}", slug(id), hash(id)) };
        DatabaseName(name.into_boxed_str())
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')
}

/// A hint for people who read a list of databases; it distinguishes nothing.
fn slug(id: &str) -> String {
    let kept = id.bytes().map(|b| b.to_ascii_lowercase()).filter(|b| is_plain(*b));
    kept.take(SLUG_BYTES_MAX).map(char::from).collect()
}

/// The first 130 bits of SHA-256 in base 32: two ids out of 2^40 share it with probability 2^-51.
fn hash(id: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(id.as_bytes());
    let bit = |i: usize| (digest[i / 8] >> (7 - i % 8)) & 1;
    let mut out = String::with_capacity(HASH_CHARS);
    for char_at in 0..HASH_CHARS {
        let value = (0..5).fold(0, |value, i| value * 2 + bit(char_at * 5 + i));
        let _ = out.write_char(char::from(ALPHABET[usize::from(value)]));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn name_of(id: &str) -> String {
        PrefixNaming::new("p").unwrap().database(&WorkspaceId::new(id).unwrap()).as_str().to_owned()
    }

    #[rstest]
    #[case::plain("shop_ws_acme", "\"shop_ws_acme\"")]
    #[case::a_quote("a\"b", "\"a\"\"b\"")]
    fn a_name_is_quoted_for_a_statement(#[case] name: &str, #[case] quoted: &str) {
        assert_eq!(DatabaseName::new(name).unwrap().quoted(), quoted);
    }

    #[test]
    fn a_name_is_shown_as_the_server_knows_it() {
        assert_eq!(DatabaseName::new("a\"b").unwrap().to_string(), "a\"b");
    }

    /// The longest readable name has exactly as many bytes as the server keeps.
    #[test]
    fn an_id_is_readable_as_long_as_its_name_fits() {
        let naming = PrefixNaming::new("shop").unwrap();
        let name_of = |bytes| naming.database(&WorkspaceId::new("a".repeat(bytes)).unwrap());
        let fits = DATABASE_NAME_BYTES_MAX - "shop_ws_".len();
        assert_eq!(name_of(fits).as_str(), format!("shop_ws_{}", "a".repeat(fits)));
        assert!(name_of(fits + 1).as_str().contains('-'));
    }

    #[test]
    fn i1_ids_that_look_alike_get_databases_of_their_own() {
        let long = "x".repeat(63);
        let alike = [
            "a-b",
            "a_b",
            "A_b",
            "a b",
            "a\u{301}",
            "\u{e1}",
            &long,
            &format!("{long}y"),
            &format!("{long}z"),
        ];
        let names: HashMap<String, &str> = alike.iter().map(|id| (name_of(id), *id)).collect();
        assert_eq!(names.len(), alike.len(), "{names:?}");
    }

    #[test]
    fn i1_an_id_cannot_imitate_the_hashed_name_of_another() {
        let hashed = name_of("A");
        let imitation = hashed.strip_prefix("p_ws_").unwrap();
        assert_ne!(name_of(imitation), hashed);
    }

    #[test]
    fn a_name_is_stable_for_ever() {
        assert_eq!(name_of("acme"), "p_ws_acme");
        assert_eq!(name_of("ACME"), "p_ws_acme-vayi5drojnzta7mgbxro77ogox");
    }

    proptest! {
        #[test]
        fn every_id_has_a_name_that_the_server_keeps_whole(id in "[^\0]{1,60}") {
            let name = name_of(&id);
            prop_assert!(name.len() <= DATABASE_NAME_BYTES_MAX);
            prop_assert!(name.bytes().all(|b| is_plain(b) || b == b'-'));
        }

        #[test]
        fn i1_different_ids_have_different_names(a in "[a-c_\\-]{1,5}", b in "[a-c_\\-]{1,5}") {
            prop_assert_eq!(a == b, name_of(&a) == name_of(&b));
        }
    }
}
