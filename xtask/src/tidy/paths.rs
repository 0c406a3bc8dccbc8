//! Which paths a source names, in a `use` or not: from the root of its crate, outside of `#[cfg(test)]`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::tokens;

/// A path that is named.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// From the root of the crate.
    pub segments: Vec<String>,
    pub line: usize,
}

/// All paths that begin with `crate`, `super` or `self` in a file of the module `module`.
pub fn named(stream: TokenStream, module: &[String]) -> Vec<Named> {
    let mut found = Vec::new();
    collect(stream, module, &mut found);
    found
}

fn collect(stream: TokenStream, module: &[String], found: &mut Vec<Named>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => at = after_attribute(&tokens, at),
            TokenTree::Ident(word) if word == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let inner: Vec<String> = module.iter().cloned().chain([name.to_string()]).collect();
                    collect(body.stream(), &inner, found);
                    at += 3;
                } else {
                    at += 1;
                }
            }
            TokenTree::Ident(word) if is_root(&word.to_string()) && is_separator(&tokens, at + 1) => {
                let (after, base) = climb(&tokens, at, module);
                tail(&tokens[after..], base, found);
                at = after;
            }
            TokenTree::Group(group) => {
                collect(group.stream(), module, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

fn is_root(word: &str) -> bool {
    matches!(word, "crate" | "super" | "self")
}

/// Passes over an attribute, and over the whole item behind it when that is only there for tests.
fn after_attribute(tokens: &[TokenTree], at: usize) -> usize {
    let Some(TokenTree::Group(attribute)) = tokens.get(at + 1) else { return at + 1 };
    if !tokens::is_cfg_test(attribute) {
        return at + 2;
    }
    let ends_item = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    tokens.iter().skip(at + 2).position(ends_item).map_or(tokens.len(), |end| at + 2 + end + 1)
}

/// Follows `crate::`, `self::` or `super::super::`; gives the place behind it, and the module that leads to.
fn climb(tokens: &[TokenTree], mut at: usize, module: &[String]) -> (usize, Vec<String>) {
    let mut base = module.to_vec();
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        match word.to_string().as_str() {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        if !is_separator(tokens, at + 1) {
            break;
        }
        at += 3;
    }
    (at, base)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon =
        |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(tokens.get(at)) && colon(tokens.get(at + 1))
}

/// The ends of a path that has led to `base`: one, or those of each branch of `{…}`.
fn tail(tokens: &[TokenTree], mut base: Vec<String>, found: &mut Vec<Named>) {
    let Some(first) = tokens.first() else { return };
    if let TokenTree::Group(branches) = first {
        let branches: Vec<TokenTree> = branches.stream().into_iter().collect();
        for branch in branches.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
            tail(branch, base.clone(), found);
        }
        return;
    }
    let is_name = match first {
        TokenTree::Ident(_) => true,
        TokenTree::Punct(punct) => punct.as_char() == '*',
        _ => false,
    };
    if !is_name {
        return;
    }
    base.push(first.to_string());
    let goes_on = is_separator(tokens, 1)
        && matches!(tokens.get(3), Some(TokenTree::Ident(_) | TokenTree::Group(_)))
        || is_separator(tokens, 1)
            && matches!(tokens.get(3), Some(TokenTree::Punct(p)) if p.as_char() == '*');
    if goes_on {
        tail(&tokens[3..], base, found);
    } else {
        found.push(Named { segments: base, line: first.span().start().line });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("use crate::a::B;", &["a::B"])]
    #[case::grouped("use crate::{a::{B, c::D}, e};", &["a::B", "a::c::D", "e"])]
    #[case::upwards("use super::b::C;", &["m::b::C"])]
    #[case::upwards_twice("use super::super::b;", &["b"])]
    #[case::its_own("self::child::f()", &["m::n::child::f"])]
    #[case::everything("use super::*;", &["m::*"])]
    #[case::generic("crate::a::b::<C>()", &["a::b"])]
    #[case::a_receiver("self.a.b", &[])]
    #[case::a_visibility("pub(crate) fn f() {}", &[])]
    #[case::an_inner_module("mod i { use super::B; }", &["m::n::B"])]
    #[case::for_tests("#[cfg(test)] use crate::a; #[cfg(test)] mod t { use super::*; }", &[])]
    fn paths_are_told_from_the_root(#[case] text: &str, #[case] paths: &[&str]) {
        let module = ["m".to_owned(), "n".to_owned()];
        let found = named(text.parse().unwrap(), &module);
        let found: Vec<String> = found.iter().map(|named| named.segments.join("::")).collect();
        assert_eq!(found, paths);
    }
}
