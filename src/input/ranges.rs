//! Where a long listing can be cut, so that its parts are listed at once. Pure.
//!
//! A listing is asked for page by page, and each page's question needs the answer before it. But a listing may begin
//! behind any key. Any keys at all cut the rest of a listing into ranges that miss nothing and overlap nowhere; that they
//! are cut where there are many keys is a guess, and a wrong one costs a request for an empty range.
//!
//! The guess: keys count. When the keys of a page go from `img/0001000` to `img/0001999`, the digit that changed is the
//! last but two. What follows has higher digits *before* it, each for ten times as many keys; so the cuts are where the
//! digits before it grow: `img/0002`, ..., `img/0009`, then `img/001`, ..., `img/009`, then `img/01`, and so on, at
//! three places. What lies behind the last cut is cut again by the same rule when its turn comes.

/// At how many places of the key a listing is cut at once: three digits are a thousand times the page.
const LEVELS: usize = 3;

/// Of the keys that were seen, each step of a digit that made so many has more than a page.
const SLOW_STEPS: usize = 2;

/// Keys at which the rest of a listing can be cut, ascending, all after `last` and before `until`. `first` and `last` are
/// keys that came, a page or so apart; `prefix_bytes` is how much of them is the listing's prefix.
pub(super) fn cuts(
    prefix_bytes: usize,
    first: &str,
    last: &str,
    until: Option<&str>,
) -> Vec<String> {
    let changed = first
        .bytes()
        .zip(last.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    // Where a digit grew by one or two, its next value is worth a range of its own.
    let is_slow = matches!(
        (first.as_bytes().get(changed), last.as_bytes().get(changed)),
        (Some(from), Some(to)) if higher(*from).take(SLOW_STEPS).any(|byte| byte == *to)
    );
    let mut cuts = Vec::new();
    let places = (prefix_bytes..changed + usize::from(is_slow))
        .rev()
        .filter(|at| last.is_char_boundary(*at) && higher(last.as_bytes()[*at]).next().is_some());
    for at in places.take(LEVELS) {
        for byte in higher(last.as_bytes()[at]) {
            cuts.push(format!("{}{}", &last[..at], char::from(byte)));
        }
    }
    cuts.retain(|cut| until.is_none_or(|until| cut.as_str() < until));
    cuts
}

/// The digits or letters after this one.
fn higher(byte: u8) -> impl Iterator<Item = u8> {
    let end = match byte {
        b'0'..=b'9' => b'9',
        b'A'..=b'Z' => b'Z',
        b'a'..=b'z' => b'z',
        other => other,
    };
    byte.saturating_add(1)..=end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_count_is_cut_where_the_digits_before_the_changing_one_grow() {
        let cuts = cuts(4, "img/0001000.jpg", "img/0001997.jpg", None);
        let expected: Vec<String> = (2..=9)
            .map(|n| format!("img/000{n}"))
            .chain((1..=9).map(|n| format!("img/00{n}")))
            .chain((1..=9).map(|n| format!("img/0{n}")))
            .collect();
        assert_eq!(cuts, expected);
    }

    #[test]
    fn the_prefix_and_what_changes_fast_are_left_alone() {
        assert_eq!(cuts(8, "img/0001000", "img/0001997", None), [""; 0]);
        assert_eq!(cuts(0, "a/x", "f/y", None), [""; 0]);
        assert_eq!(cuts(0, "8/a", "8/q", Some("9")), [""; 0]);
        assert_eq!(cuts(0, "8/a", "8/q", Some("9x")), ["9"]);
    }

    #[test]
    fn a_digit_that_grew_by_one_is_cut_at_its_next_values() {
        assert_eq!(cuts(2, "d/7/x", "d/8/y", None), ["d/9"]);
        assert_eq!(cuts(2, "d/7", "d/7/x", None), ["d/8", "d/9"]);
    }

    proptest! {
        #[test]
        fn cuts_ascend_between_the_last_key_and_the_end(
            prefix in "[a-z0-9/]{0,3}", a in "[a-zä0-9/€-]{0,6}", b in "[a-zä0-9/€-]{0,6}", until in proptest::option::of("[a-z0-9]{1,6}"),
        ) {
            let (a, b) = (format!("{prefix}{a}"), format!("{prefix}{b}"));
            let (first, last) = if a < b { (a, b) } else { (b, a) };
            let until = until.map(|end| format!("{prefix}{end}"));
            let cuts = cuts(prefix.len(), &first, &last, until.as_deref());
            prop_assert!(cuts.windows(2).all(|pair| pair[0] < pair[1]), "{cuts:?}");
            prop_assert!(cuts.iter().all(|cut| *cut > last && cut.starts_with(&prefix)));
            prop_assert!(until.is_none_or(|until| cuts.iter().all(|cut| *cut < until)));
        }
    }
}
