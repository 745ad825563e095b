//! Mixes: several prompts with weights in one text, such as `oil painting:0.7 | watercolour:0.3`.
//!
//! | written     | means                                                                                        |
//! |-------------|----------------------------------------------------------------------------------------------|
//! | `a \| b`    | a mix of a and b: `\|` outside of all brackets parts prompts; a text without one is a prompt, as it stands |
//! | `a:2 \| b`  | a with the weight 2; what follows the last `:` of a part, outside of brackets, is its weight |
//! | `\\|` `\:`  | the character itself, not syntax                                                             |
//!
//! Weights are numbers above 0, 1 where none is written, and are divided by their sum. Space around parts and weights does
//! not count. Within a part, the [syntax of prompts](super::prompt) holds, and its brackets protect what is in them:
//! `a (b|c:1.2) | d` has two parts. A bracket that is never closed protects the rest of the text, so it makes no mix there.
//! A weight counts only in a mix: `ratio 16:9` is a prompt, and `ratio 16\:9 | b` has it as a part.

use crate::error::{Error, Result};

/// The most prompts in a mix: each is a run of the text encoder.
pub const MOST: usize = 16;

/// A prompt of a mix, and its share of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Part<'a> {
    /// In the syntax of prompts: what stands between two `|`, without its weight.
    pub text: &'a str,
    /// Above 0, unless it is next to nothing beside the others; the shares of a mix add up to 1.
    pub share: f64,
}

/// The prompts in `text` and their shares: one, of share 1, is the text as it stands. Takes time in proportion to the
/// text's length.
///
/// # Errors
/// [`Error::Setting`] of `prompt` that names the part: it has no text, or a weight that is no number above 0; or there are
/// more than [`MOST`].
pub fn parse(text: &str) -> Result<Vec<Part<'_>>> {
    let places = places(text);
    let bars = places.iter().filter(|place| place.is_bar).count();
    if bars == 0 {
        return Ok(vec![Part { text, share: 1.0 }]);
    }
    if bars >= MOST {
        return Err(Error::setting(
            "prompt",
            format!(
                "is a mix of {} prompts, expected {MOST} at most; \\| is a | that parts nothing",
                bars + 1
            ),
        ));
    }
    let mut parts = Vec::with_capacity(bars + 1);
    let (mut start, mut colon) = (0, None);
    for Place { at, is_bar } in places {
        if is_bar {
            parts.push(part(text, start, colon, at, parts.len() + 1)?);
            (start, colon) = (at + 1, None);
        } else {
            colon = Some(at);
        }
    }
    parts.push(part(text, start, colon, text.len(), parts.len() + 1)?);
    // By the largest first, so that the sum is finite.
    let largest = parts
        .iter()
        .fold(0.0, |most: f64, part| most.max(part.share));
    let sum: f64 = parts.iter().map(|part| part.share / largest).sum();
    for part in &mut parts {
        part.share = part.share / largest / sum;
    }
    Ok(parts)
}

/// The `number`th part, from `start` to `end`, its weight behind `colon`.
fn part(
    text: &str,
    start: usize,
    colon: Option<usize>,
    end: usize,
    number: usize,
) -> Result<Part<'_>> {
    let wrong = |what: String| Err(Error::setting("prompt", format!("part {number} {what}")));
    let weight = match colon {
        None => 1.0,
        Some(colon) => {
            let written = text[colon + 1..end].trim();
            match written.parse::<f64>() {
                Ok(weight) if weight > 0.0 && weight.is_finite() => weight,
                _ => {
                    let start: String = written.chars().take(20).collect();
                    return wrong(format!(
                        "has the weight \"{start}\", expected a number above 0; \\: is a : that no weight follows"
                    ));
                }
            }
        }
    };
    let text = text[start..colon.unwrap_or(end)].trim();
    if text.is_empty() {
        return wrong("is empty, expected a prompt; \\| is a | that parts nothing".into());
    }
    Ok(Part {
        text,
        share: weight,
    })
}

/// A `|` or `:` that is neither escaped nor in brackets.
struct Place {
    at: usize,
    is_bar: bool,
}

fn places(text: &str) -> Vec<Place> {
    let mut found = Vec::new();
    let (mut round, mut square) = (0usize, 0usize);
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '(' => round += 1,
            '[' => square += 1,
            // One that was never opened is text.
            ')' => round = round.saturating_sub(1),
            ']' => square = square.saturating_sub(1),
            '|' | ':' if round == 0 && square == 0 => found.push(Place {
                at,
                is_bar: character == '|',
            }),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, f64)]) {
        let parts = parse(text).unwrap();
        let texts: Vec<_> = parts.iter().map(|part| part.text).collect();
        let wanted: Vec<_> = expected.iter().map(|(text, _)| *text).collect();
        assert_eq!(texts, wanted, "{text:?}");
        for (part, (_, share)) in parts.iter().zip(expected) {
            assert!((part.share - share).abs() < 1e-12, "{text:?}: {parts:?}");
        }
    }

    #[test]
    fn prompts_without_a_bar_are_what_they_always_were() {
        for text in [
            "",
            " ",
            "a neon cat",
            " ratio 16:9",
            "(cat:1.3) dog:0.7",
            r"a \| b",
            "[a|b] (c|d:1.2)",
            "(a | b",
            r"\\",
            r"a\",
            ":::",
        ] {
            check(text, &[(text, 1.0)]);
        }
    }

    #[test]
    fn shares_add_up_to_one() {
        check(
            "oil painting:0.7 | watercolour:0.3",
            &[("oil painting", 0.7), ("watercolour", 0.3)],
        );
        check("a|b", &[("a", 0.5), ("b", 0.5)]);
        check("a:3|b", &[("a", 0.75), ("b", 0.25)]);
        check(
            " a : 1e0 | b :+1. |c:.5|d:1.5 ",
            &[("a", 0.25), ("b", 0.25), ("c", 0.125), ("d", 0.375)],
        );
        check(
            "a:1e308 | b:1e308 | c:1e-300",
            &[("a", 0.5), ("b", 0.5), ("c", 0.0)],
        );
        let most = ["x"; MOST].join("|");
        check(&most, &[("x", 1.0 / MOST as f64); MOST]);
    }

    #[test]
    fn brackets_and_backslashes_protect() {
        check(
            "a (b|c:1.2):2 | [d:e] f | (g:1.3)",
            &[("a (b|c:1.2)", 0.5), ("[d:e] f", 0.25), ("(g:1.3)", 0.25)],
        );
        check(
            r"ratio 16\:9 | a\|b:3",
            &[(r"ratio 16\:9", 0.25), (r"a\|b", 0.75)],
        );
        // The backslash itself is escaped, the bar is not.
        check(r"a\\|b", &[(r"a\\", 0.5), ("b", 0.5)]);
        check(r"\(a|b\)", &[(r"\(a", 0.5), (r"b\)", 0.5)]);
        check("a) | b]", &[("a)", 0.5), ("b]", 0.5)]);
        check("16:9:2|b:2", &[("16:9", 0.5), ("b", 0.5)]);
    }

    #[test]
    fn errors_name_the_part_and_what_was_expected() {
        for (text, part, what) in [
            ("a:0|b", "part 1", "\"0\""),
            ("a|b:-1", "part 2", "\"-1\""),
            ("a|b:", "part 2", "\"\""),
            ("a|b|c:x y", "part 3", "\"x y\""),
            ("a:nan|b", "part 1", "\"nan\""),
            ("a:inf|b", "part 1", "\"inf\""),
            ("a:1e999|b", "part 1", "number above 0"),
            ("style: oil | b", "part 1", "\"oil\""),
            ("a| |b", "part 2", "empty"),
            ("|", "part 1", "empty"),
            ("a|:2", "part 2", "empty"),
            (&["x"; MOST + 1].join("|"), "17 prompts", "16 at most"),
            (&format!("a:{}|b", "é".repeat(9999)), "part 1", "éé\""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("property prompt: "), "{error}");
            assert!(error.contains(part) && error.contains(what), "{error}");
            assert!(error.contains("expected") && error.len() < 250, "{error}");
        }
    }

    /// Any string of the syntax's own characters, by a small congruential generator.
    #[test]
    fn random_texts_are_refused_or_come_apart_cleanly() {
        let pieces = [
            "|",
            "|",
            ":",
            "(",
            ")",
            "[",
            "]",
            "\\",
            "1.3",
            "0",
            "-",
            " ",
            "cat",
            "é",
            "\u{1f600}",
            "e9",
            ".",
            "\n",
        ];
        let mut state = 11u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let (mut mixes, mut written, mut refused) = (0, 0, 0);
        for _ in 0..20_000 {
            let text: String = (0..next(24)).map(|_| pieces[next(pieces.len())]).collect();
            let Ok(parts) = parse(&text) else {
                refused += 1;
                continue;
            };
            let sum: f64 = parts.iter().map(|part| part.share).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{text:?}: {parts:?}");
            if parts.len() == 1 {
                assert_eq!(parts[0].text, text);
                continue;
            }
            mixes += 1;
            // Written again with its shares, it is the same mix, unless an open bracket or a backslash protects them.
            let whole =
                |text: &str| parse(&format!("a|{text}|a")).is_ok_and(|parts| parts.len() == 3);
            if !parts.iter().all(|part| whole(part.text)) {
                continue;
            }
            written += 1;
            let again = parts
                .iter()
                .map(|part| format!("{}:{:.17}", part.text, part.share));
            let again = again.collect::<Vec<_>>().join("|");
            for (a, b) in parts.iter().zip(parse(&again).unwrap()) {
                assert_eq!(a.text, b.text, "{text:?}");
                assert!((a.share - b.share).abs() < 1e-9, "{text:?}");
            }
        }
        assert!(
            mixes > 1000 && written > 500 && refused > 1000,
            "{mixes}, {written}, {refused}"
        );
        // Nothing takes longer than in proportion to the length.
        for pattern in ["|", ":", "(", "\\", "a:1|", "[|"] {
            let _ = parse(&pattern.repeat((1 << 20) / pattern.len()));
        }
    }
}
