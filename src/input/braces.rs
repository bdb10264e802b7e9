//! Brace patterns as in the shell: `{000..015}`, `{0..100..10}`, `{a..e}`, `{train,val}`, several and nested.
//!
//! A pattern is kept as it was parsed and its members are computed by index, so that a range of a million shards costs
//! no memory. Braces that hold neither a comma nor a range are text, as in the shell; a backslash makes a brace, a
//! comma or a backslash plain text.

use std::fmt::Write as _;

use crate::error::{Error, Result};

/// The most members a pattern may have. Whoever has more shards than this lists a prefix; a larger number is a typing
/// error that would only show after hours.
pub const MAX_EXPANSION: u64 = 1_000_000;

/// Deeper nesting than anyone types; it bounds the recursion.
const MAX_DEPTH: usize = 16;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Braces {
    nodes: Vec<Node>,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Text(String),
    Numbers(Numbers),
    AnyOf(Vec<Braces>),
}

/// `start, start ± step, ...`, `count` of them, zero-padded to `width` or written as letters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Numbers {
    start: i64,
    step: i64,
    count: u64,
    width: usize,
    letters: bool,
}

impl Braces {
    /// Parses a pattern; text without braces is a pattern with one member.
    pub fn parse(text: &str) -> Result<Self> {
        let pattern = Self::parse_nested(text, 0)?;
        if pattern.count > MAX_EXPANSION {
            return Err(Error::config(
                text,
                format!(
                    "the braces stand for {} names, and at most {MAX_EXPANSION} are allowed: check the range, or name a prefix that ends in `/`",
                    Approximate(pattern.count)
                ),
            ));
        }
        Ok(pattern)
    }

    fn parse_nested(text: &str, depth: usize) -> Result<Self> {
        if depth > MAX_DEPTH {
            return Err(Error::config(
                text,
                format!("braces are nested more than {MAX_DEPTH} deep: use fewer"),
            ));
        }
        let mut nodes = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let group = (c == '{').then(|| matching(rest)).flatten();
            if let Some((inner, after)) = group
                && let Some(node) = Node::parse(inner, depth)?
            {
                if !plain.is_empty() {
                    nodes.push(Node::Text(std::mem::take(&mut plain)));
                }
                nodes.push(node);
                rest = after;
                continue;
            }
            let (kept, after) = unescape(rest);
            plain.push(kept);
            rest = after;
        }
        if !plain.is_empty() {
            nodes.push(Node::Text(plain));
        }
        let count = nodes
            .iter()
            .fold(1u64, |n, node| n.saturating_mul(node.count()));
        Ok(Self { nodes, count })
    }

    /// How many members it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether it has braces that expand.
    pub fn is_pattern(&self) -> bool {
        !matches!(self.nodes.as_slice(), [] | [Node::Text(_)])
    }

    /// The text before the first brace.
    pub fn literal(&self) -> &str {
        match self.nodes.first() {
            Some(Node::Text(text)) => text,
            _ => "",
        }
    }

    /// Member `index` of `0..count()`, the last brace varying fastest.
    pub fn member(&self, index: u64) -> String {
        let mut text = String::new();
        self.write(index, &mut text);
        text
    }

    /// All members in order.
    pub fn members(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|index| self.member(index))
    }

    fn write(&self, index: u64, into: &mut String) {
        let mut digits = Vec::with_capacity(self.nodes.len());
        let mut left = index;
        for node in self.nodes.iter().rev() {
            digits.push(left % node.count());
            left /= node.count();
        }
        for (node, digit) in self.nodes.iter().zip(digits.into_iter().rev()) {
            node.write(digit, into);
        }
    }
}

impl Node {
    /// What stands between a pair of braces; `None` when the braces are plain text.
    fn parse(inner: &str, depth: usize) -> Result<Option<Self>> {
        let choices = split_commas(inner);
        if choices.len() == 1 {
            return Ok(Numbers::parse(inner).map(Self::Numbers));
        }
        let choices: Result<Vec<_>> = choices
            .into_iter()
            .map(|choice| Braces::parse_nested(choice, depth + 1))
            .collect();
        choices.map(|choices| Some(Self::AnyOf(choices)))
    }

    fn count(&self) -> u64 {
        match self {
            Self::Text(_) => 1,
            Self::Numbers(numbers) => numbers.count,
            Self::AnyOf(choices) => choices
                .iter()
                .fold(0, |n, choice| n.saturating_add(choice.count)),
        }
    }

    fn write(&self, mut index: u64, into: &mut String) {
        match self {
            Self::Text(text) => into.push_str(text),
            Self::Numbers(numbers) => numbers.write(index, into),
            Self::AnyOf(choices) => {
                for choice in choices {
                    if index < choice.count {
                        return choice.write(index, into);
                    }
                    index -= choice.count;
                }
            }
        }
    }
}

impl Numbers {
    fn parse(text: &str) -> Option<Self> {
        let mut ends = text.split("..");
        let (first, last) = (ends.next()?, ends.next()?);
        let step = ends
            .next()
            .map_or(Some(1), |step| step.parse::<i64>().ok())?;
        if ends.next().is_some() {
            return None;
        }
        let letters = is_letter(first) && is_letter(last);
        let value = |text: &str| match letters {
            true => Some(i64::from(text.as_bytes()[0])),
            false => text.parse::<i64>().ok(),
        };
        let (start, end) = (value(first)?, value(last)?);
        let step = step.unsigned_abs().max(1);
        let count = (start.abs_diff(end) / step).saturating_add(1);
        let padded = |text: &str| {
            let digits = text.trim_start_matches(['-', '+']);
            digits.len() > 1 && digits.starts_with('0')
        };
        let width = match !letters && (padded(first) || padded(last)) {
            true => first.len().max(last.len()),
            false => 0,
        };
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        Some(Self {
            start,
            step: if end < start { -step } else { step },
            count,
            width,
            letters,
        })
    }

    fn write(&self, index: u64, into: &mut String) {
        let steps = i64::try_from(index).unwrap_or(i64::MAX);
        let value = self.start.saturating_add(self.step.saturating_mul(steps));
        match u8::try_from(value).ok().filter(|_| self.letters) {
            Some(letter) => into.push(char::from(letter)),
            // Writing to a String cannot fail.
            None => drop(write!(into, "{value:0width$}", width = self.width)),
        }
    }
}

/// A count that may have reached the end of its type.
struct Approximate(u64);

impl std::fmt::Display for Approximate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            u64::MAX => f.write_str("more than 10^19"),
            n => write!(f, "{n}"),
        }
    }
}

fn is_letter(text: &str) -> bool {
    text.len() == 1 && text.as_bytes()[0].is_ascii_alphabetic()
}

/// The text inside the brace pair that `text` begins with, and what follows it.
pub(super) fn matching(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' if depth == 1 => return Some((&text[1..at], &text[at + 1..])),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Splits at the commas that are in no inner braces.
fn split_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth, mut escaped) = (Vec::new(), 0, 0usize, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

/// The next character of text that is not empty, without its backslash, and the rest.
fn unescape(text: &str) -> (char, &str) {
    let mut chars = text.chars();
    let c = chars.next().unwrap_or_default();
    let rest = chars.as_str();
    match (c, chars.next()) {
        ('\\', Some(next @ ('{' | '}' | ',' | '\\'))) => (next, chars.as_str()),
        _ => (c, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expand(text: &str) -> Vec<String> {
        Braces::parse(text).unwrap().members().collect()
    }

    #[test]
    fn patterns_expand_as_in_the_shell() {
        // The right-hand sides are what bash 5.2 prints.
        for (pattern, expected) in [
            ("a", "a"),
            ("s{000..003}.tar", "s000.tar s001.tar s002.tar s003.tar"),
            ("{8..11}", "8 9 10 11"),
            ("{08..11}", "08 09 10 11"),
            ("{3..1}", "3 2 1"),
            ("{0..10..5}", "0 5 10"),
            ("{-01..01}", "-01 000 001"),
            ("{a..d}", "a b c d"),
            ("{x,y}{1..2}", "x1 x2 y1 y2"),
            ("{a,{b,c}d,}e", "ae bde cde e"),
            ("{x}", "{x}"),
            ("a{b", "a{b"),
            ("{a..5}", "{a..5}"),
            ("{{1..2}}", "{1} {2}"),
            (r"\{1..2\}", "{1..2}"),
            (r"{a\,b,c}", "a,b c"),
        ] {
            assert_eq!(expand(pattern).join(" "), expected, "{pattern}");
        }
    }

    #[test]
    fn absurd_patterns_are_refused_without_being_expanded() {
        for pattern in [
            "{0..1000000}",
            "{0..9223372036854775807}",
            "{-9223372036854775808..9223372036854775807}{1..99}",
            &"{0..999}".repeat(40),
        ] {
            let error = Braces::parse(pattern).unwrap_err().to_string();
            assert!(error.contains("at most 1000000"), "{error}");
        }
        assert_eq!(Braces::parse("{0..999999}").unwrap().count(), 1_000_000);
        let deep = format!("{}a{}", "{,".repeat(40), "}".repeat(40));
        assert!(
            Braces::parse(&deep)
                .unwrap_err()
                .to_string()
                .contains("nested")
        );
    }

    #[test]
    fn the_text_before_the_first_brace_is_known() {
        assert_eq!(
            Braces::parse("s3://b/p/{1..2}").unwrap().literal(),
            "s3://b/p/"
        );
        assert_eq!(Braces::parse("{1..2}").unwrap().literal(), "");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_member_is_there(text in r"[{}a,.0-9\\-]{0,24}") {
            if let Ok(pattern) = Braces::parse(&text) {
                prop_assert_eq!(pattern.members().take(1000).count() as u64, pattern.count().min(1000));
                prop_assert!(pattern.count() > 0);
            }
        }

        #[test]
        fn text_without_braces_is_itself(text in r"[^{}\\]*") {
            prop_assert_eq!(expand(&text), vec![text]);
        }

        #[test]
        fn ranges_count_what_they_write(start in 0u32..2000, len in 0u32..50, width in 1usize..6) {
            let pattern = format!("{{{start:0width$}..{:0width$}}}", start + len);
            let numbers: Vec<u32> = expand(&pattern).iter().map(|n| n.parse().unwrap()).collect();
            prop_assert_eq!(numbers, (start..=start + len).collect::<Vec<_>>());
        }
    }
}
