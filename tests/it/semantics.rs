//! Every clause of docs/SEMANTICS.md has a test that carries its number, and every number in a test has a clause.
//!
//! In the document a clause is a line that begins with its number in bold: `**P3.** The sentence.` (a list's dash may
//! stand before it). In the code it is the start of a test's doc comment: `/// P3: the sentence`, or `/// P3, P4: ..`
//! for a test that proves both. Only a doc comment on a function marked as a test counts.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::source;

/// `P3` at the start of `text`: a capital, digits, and what follows.
fn number(text: &str) -> Option<(&str, &str)> {
    let digits = text.strip_prefix(|first: char| first.is_ascii_uppercase())?;
    let end = digits
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(digits.len());
    (end > 0).then(|| text.split_at(end + 1))
}

/// The clause that a line of the document states.
fn clause(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("- ").unwrap_or(line);
    let (number, rest) = number(line.strip_prefix("**")?)?;
    rest.trim_start_matches(['.', ':'])
        .starts_with("**")
        .then_some(number)
}

/// The clauses that a doc comment's line claims: `P3: ..` or `P3, P4: ..`.
fn claims(doc: &str) -> Vec<&str> {
    let Some((list, _)) = doc.trim().split_once(':') else {
        return Vec::new();
    };
    let numbers = list.split(',').map(|item| match number(item.trim()) {
        Some((number, "")) => Some(number),
        _ => None,
    });
    numbers.collect::<Option<_>>().unwrap_or_default()
}

/// Every claim in the doc comments of tests, in any nesting.
fn claimed(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let mut docs = Vec::new();
    let mut is_test = false;
    let mut after_hash = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if after_hash && group.delimiter() == Delimiter::Bracket => {
                let (doc, test) = attribute(group.stream());
                docs.extend(doc);
                is_test |= test;
            }
            TokenTree::Group(group) => {
                claimed(group.stream(), found);
                // A body ends its item; `pub(crate)`, `#![..]` and arguments do not.
                if group.delimiter() == Delimiter::Brace {
                    (docs, is_test) = (Vec::new(), false);
                }
            }
            TokenTree::Ident(word) if word == "fn" => {
                let docs = std::mem::take(&mut docs);
                if std::mem::take(&mut is_test) {
                    found.extend(docs.iter().flat_map(|doc| claims(doc)).map(str::to_owned));
                }
            }
            TokenTree::Punct(punct) => {
                after_hash = punct.as_char() == '#';
                if punct.as_char() == ';' {
                    (docs, is_test) = (Vec::new(), false);
                }
                continue;
            }
            _ => {}
        }
        after_hash = false;
    }
}

/// The doc text of an attribute, and whether it marks a test: `test`, `tokio::test`, `tokio::test(..)`.
fn attribute(tokens: TokenStream) -> (Option<String>, bool) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    match tokens.as_slice() {
        [
            TokenTree::Ident(doc),
            TokenTree::Punct(_),
            TokenTree::Literal(text),
        ] if doc == "doc" => {
            let text = text.to_string();
            // `/// text` becomes a plain or a raw string literal; only the quotes matter here.
            let text = text
                .trim_start_matches('r')
                .trim_matches('#')
                .trim_matches('"');
            (Some(text.to_owned()), false)
        }
        path => {
            let last = path
                .iter()
                .filter_map(|token| match token {
                    TokenTree::Ident(ident) => Some(ident.to_string()),
                    _ => None,
                })
                .next_back();
            (None, last.as_deref() == Some("test"))
        }
    }
}

/// Clauses of a document, with their lines; a number used twice is an error.
fn clauses(text: &str) -> Result<BTreeMap<String, usize>, String> {
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let Some(number) = clause(line) else { continue };
        if let Some(before) = found.insert(number.to_owned(), at + 1) {
            return Err(format!(
                "clause {number} stands on line {before} and on line {}",
                at + 1
            ));
        }
    }
    Ok(found)
}

#[test]
fn every_clause_has_a_test_and_every_claim_has_a_clause() {
    let clauses = clauses(&source::read("docs/SEMANTICS.md")).unwrap();
    assert!(!clauses.is_empty(), "docs/SEMANTICS.md states no clause");
    let mut claims = BTreeSet::new();
    for file in ["src", "tests/it"].into_iter().flat_map(source::rust_files) {
        let name = file.to_str().unwrap();
        claimed(source::tokens(name, &source::read(name)), &mut claims);
    }
    let unproven: Vec<_> = clauses
        .keys()
        .filter(|number| !claims.contains(*number))
        .collect();
    let unknown: Vec<_> = claims
        .iter()
        .filter(|number| !clauses.contains_key(*number))
        .collect();
    assert!(unproven.is_empty(), "clauses without a test: {unproven:?}");
    assert!(
        unknown.is_empty(),
        "tests that claim a clause that is not there: {unknown:?}"
    );
}

#[test]
fn clauses_are_bold_numbers_at_the_start_of_a_line() {
    let text =
        "# Pipe\n\n**P1.** One.\n- **P2:** two.\n  **P10** ten\nP3. no\n**Pipe** no\nsee **P4.**\n";
    let found: Vec<String> = clauses(text).unwrap().into_keys().collect();
    assert_eq!(found, ["P1", "P10", "P2"]);
    assert!(clauses("**P1.** a\n**P1.** b\n").is_err());
}

#[test]
fn claims_count_only_on_tests() {
    let text = r#"
        /// P1: on a test.
        #[test]
        fn a() {}
        /// P2, P3: two at once, async.
        #[tokio::test(start_paused = true)]
        async fn b() {}
        /// P4: not a test.
        fn c() {}
        #[test]
        fn d() {} // P5: a comment
        proptest! {
            /// P6: inside a macro.
            #[test]
            fn e(x in 0..3u8) {}
        }
        /// P7: a constant.
        const X: u8 = 0;
        #[test]
        fn f() { let _ = "/// P8: a string"; }
        /// See P9: not at the start.
        #[test]
        fn g() {}
    "#;
    let mut found = BTreeSet::new();
    claimed(source::tokens("sample", text), &mut found);
    let found: Vec<String> = found.into_iter().collect();
    assert_eq!(found, ["P1", "P2", "P3", "P6"]);
}
