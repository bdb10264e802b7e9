//! The four ways S3 writes a point in time, from and to seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Whole seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

/// `Tue, 27 Mar 2007 19:36:42 GMT`, as in HTTP headers.
pub(crate) fn http(at: i64) -> String {
    let (year, month, day) = civil(at.div_euclid(86_400));
    let (hour, minute, second) = clock(at);
    let weekday = WEEKDAYS[at.div_euclid(86_400).rem_euclid(7) as usize];
    let month = MONTHS[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// `2007-03-27T19:36:42.000Z`, as in XML.
pub(crate) fn xml(at: i64) -> String {
    let (year, month, day) = civil(at.div_euclid(86_400));
    let (hour, minute, second) = clock(at);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// `20070327T193642Z`, as in signatures.
pub(crate) fn parse_basic(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let day = days(number(0, 4)?, number(4, 6)?, number(6, 8)?);
    Some(day * 86_400 + number(9, 11)? * 3600 + number(11, 13)? * 60 + number(13, 15)?)
}

/// `20070327T193642Z`, as in signatures.
pub fn basic(at: i64) -> String {
    let (year, month, day) = civil(at.div_euclid(86_400));
    let (hour, minute, second) = clock(at);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// The one HTTP date format that clients send.
pub(crate) fn parse_http(text: &str) -> Option<i64> {
    let mut words = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .skip(1);
    let day = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as i64 + 1;
    let year = words.next()?.parse().ok()?;
    let mut number = || words.next()?.parse::<i64>().ok();
    Some(days(year, month, day) * 86_400 + number()? * 3600 + number()? * 60 + number()?)
}

fn clock(at: i64) -> (i64, i64, i64) {
    let second = at.rem_euclid(86_400);
    (second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 of a civil date, by the era arithmetic of Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_agree() {
        let at = 1_369_353_600; // 2013-05-24T00:00:00Z, the day of AWS's signature examples.
        assert_eq!(http(at), "Fri, 24 May 2013 00:00:00 GMT");
        assert_eq!(xml(at), "2013-05-24T00:00:00.000Z");
        assert_eq!(basic(at), "20130524T000000Z");
        for at in [at, 0, 951_782_400, 1_709_210_096, 4_102_444_799] {
            assert_eq!(parse_http(&http(at)), Some(at));
            assert_eq!(parse_basic(&basic(at)), Some(at));
        }
    }
}
