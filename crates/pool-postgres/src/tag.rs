//! The mark by which a session is known from the moment it is asked for: sqlx shows neither the port of a connection nor
//! the process that serves it, so each session has an `application_name` of its own.

/// What the server keeps of an `application_name`.
const NAME_BYTES_MAX: usize = 63;
/// The longest [`application_name`](crate::PostgresConfig::application_name) that is kept whole: the tag of a session
/// stands behind it.
pub const APPLICATION_NAME_MAX: usize = NAME_BYTES_MAX - Tag::BYTES;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const DIGITS_COUNT: usize = 8;

/// What the `application_name` of one session ends with: `#` and eight digits and letters at random, of 2.8 * 10^12. A
/// thousand live sessions have two alike once in six million times that they are opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tag(String);

impl Tag {
    pub(crate) const BYTES: usize = 1 + DIGITS_COUNT;

    pub(crate) fn fresh() -> Self {
        let digits = (0..DIGITS_COUNT).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())]));
        Self(std::iter::once('#').chain(digits).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with the tag behind it, cut so that the tag is kept. The server replaces what is not printable ASCII, some
    /// versions by more than it was; so it is replaced here.
    pub(crate) fn behind(&self, name: &str) -> String {
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        name.chars().map(printable).take(APPLICATION_NAME_MAX).chain(self.0.chars()).collect()
    }
}

/// A session's `application_name` as the server shows it, without the tag of a session of a pool.
pub fn without_tag(application_name: &str) -> &str {
    let at = application_name.len().saturating_sub(Tag::BYTES);
    match application_name.split_at_checked(at) {
        Some((name, tag)) if is_tag(tag) => name,
        _ => application_name,
    }
}

fn is_tag(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or_default().as_bytes();
    digits.len() == DIGITS_COUNT && digits.iter().all(|digit| DIGITS.contains(digit))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_short_name_is_kept_whole() {
        let tag = Tag::fresh();
        assert_eq!(tag.behind("billing"), format!("billing{}", tag.as_str()));
    }

    #[rstest]
    #[case::tagged("billing#0a1b2c3d", "billing")]
    #[case::nothing_else("#0a1b2c3d", "")]
    #[case::none("billing", "billing")]
    #[case::not_one_of_ours("billing#0A1B2C3D", "billing#0A1B2C3D")]
    #[case::within_a_character("ü#0a1b2c3", "ü#0a1b2c3")]
    #[case::empty("", "")]
    fn the_tag_is_taken_off(#[case] name: &str, #[case] without: &str) {
        assert_eq!(without_tag(name), without);
    }

    #[test]
    fn a_tag_is_as_long_as_it_says() {
        assert_eq!(Tag::fresh().as_str().len(), Tag::BYTES);
    }

    #[test]
    fn a_long_name_is_cut_before_the_tag() {
        let name = Tag::fresh().behind(&"ü".repeat(200));
        assert_eq!((name.len(), &name[..3]), (NAME_BYTES_MAX, "???"));
    }

    #[test]
    fn two_tags_differ() {
        assert_ne!(Tag::fresh(), Tag::fresh());
    }
}
