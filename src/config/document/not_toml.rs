//! Recognises text that is not TOML: other formats, and characters that look like TOML's but are
//! not.

use std::ops::Range;

/// The format of a text that is not TOML, and the place where that shows.
pub fn format(text: &str) -> Option<(&'static str, Range<usize>)> {
    let text_start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut at = text_start;
    let mut first = None;
    let mut is_toml = false;
    for line in text.get(text_start..).unwrap_or_default().split_inclusive('\n') {
        let trimmed = line.trim();
        let start = at + (line.len() - line.trim_start().len());
        at += line.len();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        first.get_or_insert((trimmed, start..start + trimmed.len()));
        let key = trimmed.split_once('=').map(|(key, _)| key.trim_end());
        is_toml |= key.is_some_and(is_key) || trimmed.starts_with('[') && trimmed.ends_with(']');
    }
    let (line, span) = first?;
    let key = line.split_once(':').filter(|(_, rest)| rest.is_empty() || rest.starts_with(' '));
    if line.starts_with('{')
        || line.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'))
    {
        Some(("JSON", span))
    } else if !is_toml && (line == "---" || key.is_some_and(|(key, _)| is_key(key))) {
        Some(("YAML", span))
    } else {
        None
    }
}

fn is_key(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(legal)
}

/// Help for a character that looks like one of TOML's but is not, in the line at `at`.
pub fn lookalike_in_line(text: &str, at: usize) -> Option<String> {
    let before = text.get(..at)?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.split('\n').next()?;
    let line = if start == 0 { line.trim_start_matches('\u{feff}') } else { line };
    let mut quote = None;
    let mut in_quotes = None;
    let mut is_escaped = false;
    for c in line.chars() {
        match quote {
            // Every character is allowed within quotes, unless they are not closed.
            Some(open) => {
                let is_end = c == open && !is_escaped;
                is_escaped = open == '"' && c == '\\' && !is_escaped;
                if in_quotes.is_none() && lookalike(c) == Some(Lookalike::Ascii(open)) {
                    in_quotes = Some(c);
                }
                if is_end {
                    (quote, in_quotes) = (None, None);
                }
            }
            None if c == '#' => return None,
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if lookalike(c).is_some() => return help(c),
            None => {}
        }
    }
    in_quotes.and_then(help)
}

/// Help for a character of a value that looks like an ASCII character but is not.
pub fn lookalike_in_value(value: &str) -> Option<String> {
    value.chars().find(|c| lookalike(*c).is_some()).and_then(help)
}

fn help(c: char) -> Option<String> {
    Some(match lookalike(c)? {
        Lookalike::Invisible => {
            format!("U+{:04X} is an invisible character: delete it", u32::from(c))
        }
        Lookalike::Ascii(' ') => format!("U+{:04X} is not an ASCII space: write ' '", u32::from(c)),
        Lookalike::Ascii(ascii) => format!("'{c}' is not ASCII: write {ascii}"),
    })
}

/// What a character outside ASCII is mistaken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookalike {
    Ascii(char),
    /// It is not visible.
    Invisible,
}

fn lookalike(c: char) -> Option<Lookalike> {
    let ascii = match c {
        '“' | '”' | '„' | '‟' | '«' | '»' => '"',
        '‘' | '’' | '‚' | '‛' | '´' => '\'',
        '、' => ',',
        '。' => '.',
        '【' => '[',
        '】' => ']',
        '–' | '—' | '−' | '‐' | '‑' => '-',
        '\u{a0}' | '\u{3000}' | '\u{2000}'..='\u{200a}' => ' ',
        // The full-width forms, in the order of ASCII.
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0)?,
        c if is_invisible(c) => return Some(Lookalike::Invisible),
        _ => return None,
    };
    Some(Lookalike::Ascii(ascii))
}

/// Whether a character has no width on a screen.
pub fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}'
            | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_recognised_by_their_first_line() {
        for (text, expected) in [
            ("{ \"server\": {} }", Some("JSON")),
            ("\n[\n", None),
            ("[{ \"a\": 1 }]", Some("JSON")),
            ("---\nserver:\n", Some("YAML")),
            ("# x\nserver:\n  listen: \"0.0.0.0:8080\"\n", Some("YAML")),
            ("\u{feff}server:\r\n  listen: x\r\n", Some("YAML")),
            ("listen: x\n[server]\n", None),
            ("a = 1\nb: 2\n", None),
            ("server\n", None),
            ("http://x\n", None),
            ("", None),
        ] {
            assert_eq!(format(text).map(|(format, _)| format), expected, "{text:?}");
        }
    }

    #[test]
    fn a_lookalike_of_a_toml_character_is_shown() {
        let of = |line: &str| lookalike_in_line(line, 0).unwrap_or_default();
        for (line, said) in [
            ("listen = “0.0.0.0:8080”", "'“' is not ASCII: write \""),
            ("listen = \"0.0.0.0:8080”", "'”' is not ASCII: write \""),
            ("listen ＝ \"x\"", "'＝' is not ASCII: write ="),
            ("a = [\"x\"，\"y\"]", "'，' is not ASCII: write ,"),
            ("［server］", "'［' is not ASCII: write ["),
            ("a\u{a0}= 1", "U+00A0 is not an ASCII space: write ' '"),
            ("a = 1\u{200b}", "U+200B is an invisible character: delete it"),
            ("name = \"商店，一\"", ""),
            ("name = \"a\\\"“\"", ""),
            ("name = 1 # 端口：一", ""),
        ] {
            assert_eq!(of(line), said, "{line}");
        }
        assert_eq!(lookalike_in_value("0.0.0.0：8080").unwrap(), "'：' is not ASCII: write :");
        assert_eq!(lookalike_in_value("商店"), None);
        assert_eq!(lookalike_in_line("a = 1\nb ＝ 2", 6).unwrap(), "'＝' is not ASCII: write =");
    }
}
