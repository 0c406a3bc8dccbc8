//! Reading Rust as tokens, so that comments, strings and the bodies of macros are what they are.
//!
//! Lines of text would take a fixture in a string for a test, and a `use` in a comment for a dependency; a full syntax
//! tree would not look into macros.

use proc_macro2::{Delimiter, Group, LexError, TokenStream, TokenTree};

/// A function, with what the rules want to know of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its name.
    pub line: usize,
    /// The line on which its body ends; that of its name where it has none.
    pub last: usize,
    /// Whether an attribute in front of it makes it a test.
    pub is_test: bool,
}

/// Reads a file.
///
/// # Errors
/// When it is no sequence of Rust tokens.
pub fn parse(text: &str) -> Result<TokenStream, LexError> {
    text.parse()
}

/// All functions, also those in modules and in the bodies of macros.
pub fn functions(tokens: TokenStream) -> Vec<Function> {
    let mut found = Vec::new();
    collect_functions(tokens, &mut found);
    found
}

fn collect_functions(tokens: TokenStream, found: &mut Vec<Function>) {
    let mut is_test = false;
    let mut without_body = None; // where the function is in `found` whose body comes next
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                if let Some(TokenTree::Group(attribute)) = tokens.peek() {
                    is_test |= is_test_attribute(attribute);
                }
            }
            TokenTree::Ident(word) if word == "fn" => {
                if let Some(TokenTree::Ident(name)) = tokens.peek() {
                    let line = name.span().start().line;
                    without_body = Some(found.len());
                    found.push(Function { name: name.to_string(), line, last: line, is_test });
                }
            }
            TokenTree::Group(group) if group.delimiter() != Delimiter::Bracket => {
                if group.delimiter() == Delimiter::Brace {
                    is_test = false; // a body ends what the attribute was for
                    if let Some(function) = without_body.take().and_then(|at| found.get_mut(at)) {
                        function.last = group.span_close().end().line;
                    }
                }
                collect_functions(group.stream(), found);
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => {
                is_test = false;
                without_body = None;
            }
            _ => {}
        }
    }
}

/// `#[test]`, `#[tokio::test(…)]`, `#[rstest]`: the last word of the attribute's path tells.
fn is_test_attribute(attribute: &Group) -> bool {
    let path = attribute.stream().into_iter().map_while(|token| match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        TokenTree::Punct(punct) if punct.as_char() == ':' => Some(String::new()),
        _ => None,
    });
    path.last().is_some_and(|word| word == "test" || word == "rstest")
}

/// Whether an attribute is `#[cfg(test)]`.
pub fn is_cfg_test(attribute: &Group) -> bool {
    attribute.stream().to_string().replace(' ', "") == "cfg(test)"
}

#[cfg(test)]
mod tests {
    use super::{functions, parse};

    #[test]
    fn tests_are_told_from_helpers_and_from_strings() {
        let text = "/// fn in_a_comment() {}\n\
            #[test]\nfn plain() {}\n\
            fn helper() { let s = \"#[test] fn in_a_string() {}\"; fn inner() {} }\n\
            #[tokio::test(start_paused = true)]\nasync fn paused() {}\n\
            #[rstest]\n#[case(1)]\npub fn table(#[case] n: u8) {}\n\
            #[cfg(test)]\nfn only_for_tests() {}\n\
            proptest! { #[test] fn in_a_macro(x in 0..9) {} }\n\
            trait T { #[must_use]\nfn verb(&self); }\n";
        let found: Vec<(String, usize, bool)> =
            functions(parse(text).unwrap()).into_iter().map(|f| (f.name, f.line, f.is_test)).collect();
        let expected = [
            ("plain", 3, true),
            ("helper", 4, false),
            ("inner", 4, false),
            ("paused", 6, true),
            ("table", 9, true),
            ("only_for_tests", 11, false),
            ("in_a_macro", 12, true),
            ("verb", 14, false),
        ];
        assert_eq!(found, expected.map(|(name, line, test)| (name.to_owned(), line, test)));
    }

    #[test]
    fn a_function_ends_where_its_own_body_does() {
        let text = "trait T {\nfn verb(&self)\n-> [u8; 2];\n}\n\
            mod m {\nfn outer<F>(f: F)\nwhere\nF: Fn(fn() -> u8),\n{\nfn inner() {\n}\n}\n}\n\
            m! { $(fn $case() {})+ fn one_line() {} }\n";
        let found: Vec<(String, usize, usize)> =
            functions(parse(text).unwrap()).into_iter().map(|f| (f.name, f.line, f.last)).collect();
        let expected = [("verb", 2, 2), ("outer", 6, 12), ("inner", 10, 11), ("one_line", 14, 14)];
        assert_eq!(found, expected.map(|(name, line, last)| (name.to_owned(), line, last)));
    }
}
