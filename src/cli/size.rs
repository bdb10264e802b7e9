//! Sizes as people type them: `64MiB`, `64MB`, `1.5GiB`, `4096`.
//!
//! `64MiB`, `64Mi` and `64M` are powers of 1024 (a lone letter is, as for `dd`, `head` and `ulimit`); `64MB` is one of
//! 1000. Case is of no account.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Binary units first: they are what sizes are printed in.
const BINARY: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];
const DECIMAL: [(&str, u64); 5] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("", 1),
];

/// Units that are typed and never printed.
const SHORT: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unusable = |reason: &str| {
            Error::config(
                text,
                format!(
                    "{reason}: use a number and a unit, such as 64MiB, 64Mi or 64M (of 1024) or 64MB (of 1000)"
                ),
            )
        };
        let typed = text.trim();
        let digits = typed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(typed.len());
        let (number, unit) = (&typed[..digits], typed[digits..].trim());
        let unit_bytes = BINARY
            .iter()
            .chain(&DECIMAL)
            .chain(&SHORT)
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(|| unusable("not a size"))?
            .1;
        times(number, unit_bytes)
            .map(Self)
            .ok_or_else(|| unusable("not a size"))
    }
}

/// A decimal number times a unit, exactly, rounded down to whole bytes; `None` if it is no number or too large.
fn times(number: &str, unit_bytes: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Eighteen digits are finer than a byte in any unit, and cannot overflow below.
    if whole.is_empty() || fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?);
    let part = match fraction {
        "" => 0,
        digits => {
            digits.parse::<u128>().ok()? * u128::from(unit_bytes) / 10u128.pow(digits.len() as u32)
        }
    };
    u64::try_from(whole * u128::from(unit_bytes) + part).ok()
}

impl fmt::Display for Size {
    /// Exactly, in the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = BINARY
            .into_iter()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
            .unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// About how much, for people: three digits and a unit.
pub(super) fn human(bytes: f64) -> String {
    let unit = unit_for(bytes);
    format!("{} {}", digits(bytes, unit), unit.0)
}

/// How much of how much, in one unit: `0.13/3.00 GiB`; `sign` stands before the whole.
pub(super) fn share(part: u64, whole: u64, sign: &str) -> String {
    let unit = unit_for(part.max(whole) as f64);
    let (part, whole) = (digits(part as f64, unit), digits(whole as f64, unit));
    format!("{part}/{sign}{whole} {}", unit.0)
}

fn unit_for(bytes: f64) -> (&'static str, u64) {
    BINARY
        .into_iter()
        // From 999.5 on, three digits would be four.
        .find(|(_, unit)| bytes >= *unit as f64 * 0.9995)
        .unwrap_or(("B", 1))
}

fn digits(bytes: f64, (name, unit): (&str, u64)) -> String {
    let value = bytes / unit as f64;
    match name {
        "B" => format!("{value:.0}"),
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_people_type_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("64Mi", 64 << 20),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("1k", 1024),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("2Gi", 2 << 30),
            ("64MB", 64_000_000),
            ("1.5GiB", 3 << 29),
            ("0.1KB", 100),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_would_be() {
        for text in [
            "",
            "MiB",
            "-1",
            "1.2.3MiB",
            "64X",
            "64 parsecs",
            "16777216TiB",
            "1e9",
            ".",
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("such as 64MiB"), "{text}: {error}");
        }
    }

    #[test]
    fn people_get_three_digits() {
        let shown: Vec<_> = [0.0, 999.0, 1023.9, 1536.0, 1.05e7, 5e11].map(human).into();
        assert_eq!(
            shown,
            [
                "0 B", "999 B", "1.00 KiB", "1.50 KiB", "10.0 MiB", "466 GiB"
            ]
        );
    }

    #[test]
    fn a_share_has_one_unit() {
        assert_eq!(share(100 << 20, 3 << 30, "≥"), "0.10/≥3.00 GiB");
        assert_eq!(share(0, 0, ""), "0/0 B");
    }

    proptest! {
        #[test]
        fn sizes_print_as_they_parse(bytes: u64, unit in 0u32..41) {
            let size = Size(bytes >> unit << unit);
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in ".{0,12}") {
            let _ = text.parse::<Size>();
        }
    }
}
