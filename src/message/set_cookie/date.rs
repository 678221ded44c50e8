//! Reads the dates of cookies in every form that browsers accept (RFC 6265, section 5.1.1).

/// A date, in milliseconds since 1970; 0 for earlier ones. `None` if it is not one.
pub fn parse(text: &[u8]) -> Option<u64> {
    let (mut time, mut day, mut month, mut year) = (None, None, None, None);
    for token in text.split(|byte| is_delimiter(*byte)).filter(|token| !token.is_empty()) {
        if time.is_none() {
            time = read_time(token);
            if time.is_some() {
                continue;
            }
        }
        if day.is_none() {
            day = number(token, 1..=2).map(|(day, _)| day);
            if day.is_some() {
                continue;
            }
        }
        if month.is_none() {
            month = read_month(token);
            if month.is_some() {
                continue;
            }
        }
        if year.is_none() {
            year = number(token, 2..=4).map(|(year, _)| year);
        }
    }
    let ((hour, minute, second), day, month) = (time?, day?, month?);
    let year = match year? {
        year @ 70..=99 => year + 1900,
        year @ 0..=69 => year + 2000,
        year => year,
    };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + u32::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year < 1601 || !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = u64::from(hour * 3600 + minute * 60 + second);
    let days = days_since_1970(year, month, day);
    Some(days.map_or(0, |days| (days * 86_400 + seconds) * 1000))
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x2f | 0x3b..=0x40 | 0x5b..=0x60 | 0x7b..=0x7e)
}

/// The number at the start of a token, which has this many digits, and what follows them.
fn number(token: &[u8], digits: std::ops::RangeInclusive<usize>) -> Option<(u32, &[u8])> {
    let count = token.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (text, rest) = token.split_at_checked(count).filter(|_| digits.contains(&count))?;
    Some((text.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')), rest))
}

fn read_time(token: &[u8]) -> Option<(u32, u32, u32)> {
    let (hour, rest) = number(token, 1..=2)?;
    let (minute, rest) = number(rest.strip_prefix(b":")?, 1..=2)?;
    let (second, _) = number(rest.strip_prefix(b":")?, 1..=2)?;
    Some((hour, minute, second))
}

fn read_month(token: &[u8]) -> Option<u32> {
    let months =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let name = token.get(..3)?;
    let named = (1..).zip(months);
    named.into_iter().find(|(_, month)| name.eq_ignore_ascii_case(month.as_bytes())).map(|(n, _)| n)
}

/// `None` for days before 1970.
fn days_since_1970(year: u32, month: u32, day: u32) -> Option<u64> {
    // Years that begin with March, so that a leap day is the last day.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    // The same count for 1 January 1970.
    days.checked_sub(719_469).map(u64::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_read_in_every_form_that_browsers_accept() {
        const EXPECTED: u64 = 784_111_777_000;
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "6 nov 1994 8:49:37",
            "08:49:37 1994 nov 6",
            "06 November 94 08:49:37 +0800",
            "6th Novemberish 1994s 08:49:37.123",
            "Sun,06/Nov/1994 08:49:37",
        ] {
            assert_eq!(parse(text.as_bytes()), Some(EXPECTED), "{text}");
        }
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Thu, 01-Jan-1970 00:00:01 GMT", 1000),
            ("Mon, 01 Jan 1601 00:00:00 GMT", 0),
            ("Fri, 31 Dec 1969 23:59:59 GMT", 0),
            ("29 Feb 2000 00:00:00", 951_782_400_000),
            ("1 Jan 69 00:00:00", 3_124_224_000_000),
            ("31 Dec 9999 23:59:59", 253_402_300_799_000),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_not_read() {
        for text in [
            "",
            "0",
            "never",
            "Sun, 06 Nov 1994",
            "06 Nov 08:49:37",
            "Nov 1994 08:49:37",
            "32 Nov 1994 08:49:37",
            "31 Nov 1994 08:49:37",
            "29 Feb 1900 00:00:00",
            "00 Nov 1994 08:49:37",
            "06 Nov 1994 24:49:37",
            "06 Nov 1994 08:60:37",
            "06 Nov 1994 08:49:60",
            "06 Nov 1994 08:49",
            "06 Nov 1600 08:49:37",
            "06 Nov 19940 08:49:37",
            "06 Nvo 1994 08:49:37",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn dates_agree_with_those_of_http(seconds in 0_u64..253_402_300_800) {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let text = httpdate::fmt_http_date(time);
            prop_assert_eq!(parse(text.as_bytes()), Some(seconds * 1000));
        }

        #[test]
        fn no_bytes_are_too_strange(text in prop::collection::vec(any::<u8>(), 0..64)) {
            parse(&text);
        }
    }
}
