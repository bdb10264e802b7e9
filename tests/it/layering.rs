//! The layers of ARCHITECTURE.md hold: a module imports only modules on earlier lines of the block.
//!
//! The block is read from the document, so the document cannot lie. Every path that starts at the crate's root is
//! looked at, in `use` trees (groups too) and in the middle of code, in test modules and inside macro calls;
//! `super::` is followed to see whether it leaves its module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::source;

/// Module name to line of the block, counted from 0 at the bottom layer.
#[derive(Debug)]
struct Layers(BTreeMap<String, usize>);

impl Layers {
    /// Reads the first block fenced as ` ```layers `.
    fn parse(markdown: &str) -> Result<Self, String> {
        let mut layers = BTreeMap::new();
        let block = markdown
            .lines()
            .skip_while(|line| line.trim() != "```layers")
            .skip(1)
            .take_while(|line| line.trim() != "```");
        for (layer, line) in block.enumerate() {
            for name in line.split_whitespace() {
                if layers.insert(name.to_owned(), layer).is_some() {
                    return Err(format!("`{name}` stands twice in the layers block"));
                }
            }
        }
        if layers.is_empty() {
            return Err("no ```layers block".into());
        }
        Ok(Self(layers))
    }

    /// What is wrong with `from` naming `crate::to`, if anything.
    fn objection(&self, from: &str, to: &str) -> Option<String> {
        if from == to {
            return None;
        }
        let Some(to_layer) = self.0.get(to) else {
            return Some(format!(
                "`crate::{to}` is no module of the layers block: import by the module's own path"
            ));
        };
        let from_layer = self.0.get(from)?;
        if to_layer < from_layer {
            return None;
        }
        let direction = if to_layer == from_layer {
            "sideways"
        } else {
            "up"
        };
        Some(format!("`{from}` imports `{to}`: that goes {direction}"))
    }
}

/// A name at the crate's root that some code mentions.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mention {
    line: usize,
    name: String,
}

/// Collects the root names mentioned in code that stands `depth` modules below the crate's root.
fn mentions(tokens: TokenStream, depth: usize, found: &mut BTreeSet<Mention>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if let Some((body, next)) = inline_module(&tokens, at) {
            mentions(body.stream(), depth + 1, found);
            at = next;
        } else if let Some(next) = root_path(&tokens, at, depth) {
            root_names(&tokens[next..], found);
            at = next;
        } else {
            if let TokenTree::Group(group) = &tokens[at] {
                mentions(group.stream(), depth, found);
            }
            at += 1;
        }
    }
}

/// `mod name { body }` at `at`: its body, and where the code goes on.
fn inline_module(tokens: &[TokenTree], at: usize) -> Option<(&Group, usize)> {
    match tokens.get(at..at + 3)? {
        [
            TokenTree::Ident(keyword),
            TokenTree::Ident(_),
            TokenTree::Group(body),
        ] if keyword == "mod" && body.delimiter() == Delimiter::Brace => Some((body, at + 3)),
        _ => None,
    }
}

/// `crate::` or as many `super::` as lead to the crate's root: where the next segment stands.
fn root_path(tokens: &[TokenTree], mut at: usize, depth: usize) -> Option<usize> {
    if at >= 2 && colons(tokens, at - 2).is_some() {
        return None; // in the middle of a path: `foo::super` is not Rust, `$crate` has no colons before it
    }
    if is_ident(tokens, at, "crate") {
        return colons(tokens, at + 1);
    }
    if is_ident(tokens, at, "self") {
        at = colons(tokens, at + 1)?;
    }
    let mut climbed = 0;
    while climbed < depth && is_ident(tokens, at, "super") {
        at = colons(tokens, at + 1)?;
        climbed += 1;
    }
    (climbed > 0 && climbed == depth).then_some(at)
}

fn is_ident(tokens: &[TokenTree], at: usize, name: &str) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Ident(ident)) if ident == name)
}

fn is_punct(tokens: &[TokenTree], at: usize, char: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == char)
}

/// `::` at `at`: where the code goes on.
fn colons(tokens: &[TokenTree], at: usize) -> Option<usize> {
    (is_punct(tokens, at, ':') && is_punct(tokens, at + 1, ':')).then_some(at + 2)
}

/// The names that follow `crate::`: one, every branch of a group, or a glob.
fn root_names(tokens: &[TokenTree], found: &mut BTreeSet<Mention>) {
    let Some(first) = tokens.first() else { return };
    let line = first.span().start().line;
    let name = match first {
        TokenTree::Ident(ident) => ident.to_string(),
        TokenTree::Punct(punct) => punct.to_string(),
        TokenTree::Group(group) => return group_names(group, found),
        TokenTree::Literal(_) => return,
    };
    found.insert(Mention { line, name });
}

/// The first segment of every branch of `{a, b::{c, d}, e::f as g}`.
fn group_names(group: &Group, found: &mut BTreeSet<Mention>) {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    let mut branch = 0;
    while branch < tokens.len() {
        root_names(&tokens[branch..], found);
        branch = (branch..tokens.len())
            .find(|&at| is_punct(&tokens, at, ','))
            .map_or(tokens.len(), |comma| comma + 1);
    }
}

/// `src/client/s3/sign.rs` stands in top module `client`, three modules below the root.
fn place(file: &Path) -> (String, usize) {
    let path = file.strip_prefix("src").unwrap().with_extension("");
    let parts: Vec<String> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    (parts[0].clone(), parts.len())
}

/// Every objection to one file, as `file:line: what`.
fn objections(layers: &Layers, file: &Path, text: &str) -> Vec<String> {
    let name = file.display().to_string();
    let (module, depth) = place(file);
    let mut found = BTreeSet::new();
    mentions(source::tokens(&name, text), depth, &mut found);
    found
        .iter()
        .filter_map(|mention| {
            let what = layers.objection(&module, &mention.name)?;
            Some(format!("{name}:{}: {what}", mention.line))
        })
        .collect()
}

/// Differences between the modules there are and the modules in the block.
fn missing(layers: &Layers, modules: &BTreeSet<String>) -> Vec<String> {
    let listed: BTreeSet<String> = layers.0.keys().cloned().collect();
    let unlisted = modules
        .difference(&listed)
        .map(|name| format!("src/{name}.rs: not in the layers block of ARCHITECTURE.md"));
    let absent = listed.difference(modules).map(|name| {
        format!("ARCHITECTURE.md: the layers block names `{name}`, src/{name}.rs is not there")
    });
    unlisted.chain(absent).collect()
}

/// The library's files without its root, which only declares; `main.rs` is another crate.
fn module_files() -> Vec<std::path::PathBuf> {
    let roots = [Path::new("src/lib.rs"), Path::new("src/main.rs")];
    let mut files = source::rust_files("src");
    files.retain(|file| !roots.contains(&file.as_path()));
    files
}

fn layers() -> Layers {
    Layers::parse(&source::read("ARCHITECTURE.md")).unwrap()
}

#[test]
fn no_import_goes_up_or_sideways() {
    let layers = layers();
    let files = module_files();
    let found: Vec<String> = files
        .iter()
        .flat_map(|file| objections(&layers, file, &source::read(file.to_str().unwrap())))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_block_lists_exactly_the_modules_there_are() {
    let modules = module_files().iter().map(|file| place(file).0).collect();
    let found = missing(&layers(), &modules);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_scan_sees_the_imports_of_this_crate() {
    // A scanner that finds nothing would pass everything: the seam is known to import these three.
    let mut found = BTreeSet::new();
    mentions(
        source::tokens("client", &source::read("src/client.rs")),
        1,
        &mut found,
    );
    let names: BTreeSet<&str> = found.iter().map(|mention| mention.name.as_str()).collect();
    assert!(
        names.is_superset(&["buffer", "error", "object"].into()),
        "{names:?}"
    );
}

/// Lines at which `text`, as a file of module `middle`, is refused under a block of three layers.
fn refused(file: &str, text: &str) -> Vec<String> {
    let layers = Layers::parse("# x\n```layers\nlow\nmiddle beside\nhigh\n```\n").unwrap();
    objections(&layers, Path::new(file), text)
}

#[test]
fn allowed_imports_pass() {
    let text = r##"
        //! `use crate::high::X;` in a comment is prose.
        use crate::low::{A, b::C};
        use crate::middle::own;
        use super::sibling;
        pub(crate) fn f() -> crate::low::T { "crate::high::x()"; r#"use crate::high;"#; g::<'_'>() }
        mod tests { use super::*; use super::super::sibling; fn t() { crate::low::x!() } }
    "##;
    assert_eq!(refused("src/middle/part.rs", text), Vec::<String>::new());
}

#[test]
fn violations_are_found_with_file_and_line() {
    let cases = [
        ("use crate::high::X;", "goes up"),
        ("use crate::beside::X;", "goes sideways"),
        ("use crate::{low, high::X};", "imports `high`"),
        (
            "use crate::{low::{self, y}, beside::{a, b}};",
            "imports `beside`",
        ),
        ("pub use crate::high as h;", "goes up"),
        ("fn f() { let x = crate::high::new(); }", "goes up"),
        (
            "fn f() -> Vec<crate::beside::T> { loop {} }",
            "goes sideways",
        ),
        ("fn f() { call!(a, [crate::high::new()]); }", "goes up"),
        ("macro_rules! m { () => { $crate::high::x() } }", "goes up"),
        ("#[cfg(test)] mod tests { use crate::high::X; }", "goes up"),
        ("mod tests { use super::super::super::high::X; }", "goes up"),
        ("use super::super::{low, high};", "goes up"),
        ("use self::super::super::high;", "goes up"),
        ("use crate::*;", "no module"),
        ("use crate::Reexported;", "no module"),
    ];
    for (line, expected) in cases {
        let found = refused("src/middle/part.rs", &format!("//! Docs.\n\n{line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert!(found[0].starts_with("src/middle/part.rs:3: "), "{found:?}");
        assert!(found[0].contains(expected), "{line}: {found:?}");
    }
}

#[test]
fn a_missing_module_and_a_missing_entry_are_found() {
    let layers = Layers::parse("```layers\nlow gone\n```").unwrap();
    let found = missing(&layers, &["low".to_owned(), "new".to_owned()].into());
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("src/new.rs: not in the layers block"));
    assert!(found[1].contains("names `gone`"));
}

#[test]
fn a_block_must_be_there_and_name_each_module_once() {
    assert!(Layers::parse("no block").is_err());
    assert!(Layers::parse("```layers\na b\nb\n```").is_err());
}
