//! Prompt syntax: weights, and chunks ended by hand.
//!
//! The syntax is that of AUTOMATIC1111's web UI, most of which ComfyUI shares:
//!
//! | written          | means                                                                          |
//! |------------------|--------------------------------------------------------------------------------|
//! | `(x)`            | x with 1.1 times the weight                                                    |
//! | `[x]`            | x with 1/1.1 times the weight                                                  |
//! | `(x:1.3)`        | x with 1.3 times the weight; a sign, digits and points, space around the number |
//! | `\(` `\)` `\[` `\]` `\\` | the character itself; a backslash before anything else is dropped      |
//! | `BREAK`          | ends the chunk at hand, even an empty one; a word of its own, in upper case    |
//!
//! Weights of brackets inside one another multiply. The two kinds of brackets are paired each on its own. A bracket that
//! is never closed is closed at the end of the text; one that was never opened is text. So is a `:` that no number and
//! `)` follow, or that stands in no `(`: `(x:abc)` is `x:abc` with weight 1.1. Text on both sides of a bracket that has one
//! weight is one part. `BREAK` also works inside brackets, whose weight goes on behind it; space around it is dropped.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Weights that a part may have.
pub const WEIGHTS: RangeInclusive<f64> = 0.0..=10.0;
/// What a pair of plain brackets multiplies with, or divides by.
const EMPHASIS: f64 = 1.1;
const BREAK: &str = "BREAK";

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text, never empty, and its weight, within [`WEIGHTS`].
    Part {
        /// What is to be tokenised, spaces at its ends included.
        text: String,
        /// 1 is as it stands.
        weight: f32,
    },
    /// The chunk at hand ends here.
    Break,
}

/// The pieces of `text`. Takes time in proportion to its length.
///
/// # Errors
/// [`Error::Setting`] of `prompt` for a part whose weight is outside [`WEIGHTS`].
pub fn parse(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    // The weights of the brackets that are open around a place, all multiplied, outermost first.
    let mut round = vec![1.0];
    let mut square = vec![1.0];
    let top = |weights: &[f64]| weights.last().copied().unwrap_or(1.0);
    for lexeme in lexemes(text) {
        match lexeme {
            Lexeme::Text(text) => add(&mut pieces, text, top(&round) * top(&square))?,
            Lexeme::Break => pieces.push(Piece::Break),
            Lexeme::Open(Bracket::Round, factor) => round.push(top(&round) * factor),
            Lexeme::Open(Bracket::Square, factor) => square.push(top(&square) * factor),
            Lexeme::Close(Bracket::Round) => drop(round.pop()),
            Lexeme::Close(Bracket::Square) => drop(square.pop()),
        }
    }
    Ok(pieces)
}

/// Weights a text embedding `[L, D]` by its tokens: `e ← e₀ + w·(e − e₀)`, as ComfyUI does it, where `empty` `[L, D]` is the
/// embedding of the empty text and `weights` has a number for each of the L tokens. A weight of 1 leaves its token's
/// embedding as it is, bit for bit.
pub fn weigh(embedding: &mut [f32], empty: &[f32], weights: &[f32]) {
    debug_assert_eq!(embedding.len(), empty.len());
    if weights.is_empty() {
        return;
    }
    let width = (embedding.len() / weights.len()).max(1);
    let rows = embedding.chunks_mut(width).zip(empty.chunks(width));
    for ((row, empty), &weight) in rows.zip(weights) {
        if weight == 1.0 {
            continue;
        }
        for (e, e0) in row.iter_mut().zip(empty) {
            *e = e0 + weight * (*e - e0);
        }
    }
}

/// Adds text to the last part, if that has the same weight, else as a part.
fn add(pieces: &mut Vec<Piece>, more: &str, weight: f64) -> Result<()> {
    if more.is_empty() {
        return Ok(());
    }
    if !WEIGHTS.contains(&weight) {
        let start: String = more.trim().chars().take(20).collect();
        return Err(Error::setting(
            "prompt",
            format!(
                "gives \"{start}\" the weight {weight}, expected {} to {}",
                WEIGHTS.start(),
                WEIGHTS.end()
            ),
        ));
    }
    // Compared as kept, so that products which differ by rounding alone are the same.
    let new = weight as f32;
    match pieces.last_mut() {
        Some(Piece::Part { text, weight }) if *weight == new => text.push_str(more),
        _ => pieces.push(Piece::Part {
            text: more.into(),
            weight: new,
        }),
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Bracket {
    Round,
    Square,
}

enum Lexeme<'a> {
    Text(&'a str),
    Break,
    /// An opening bracket and what it multiplies weights with.
    Open(Bracket, f64),
    /// A closing bracket that has an opening one.
    Close(Bracket),
}

/// What `text` consists of, with brackets paired.
fn lexemes(text: &str) -> Vec<Lexeme<'_>> {
    let mut found = Vec::new();
    // Where in `found` the brackets stand that are still open.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next();
                if let Some(c @ ('(' | ')' | '[' | ']' | '\\')) = escaped {
                    length += c.len_utf8();
                    found.push(Lexeme::Text(&rest[1..length]));
                }
            }
            '(' => {
                round.push(found.len());
                found.push(Lexeme::Open(Bracket::Round, EMPHASIS));
            }
            '[' => {
                square.push(found.len());
                found.push(Lexeme::Open(Bracket::Square, 1.0 / EMPHASIS));
            }
            ')' if !round.is_empty() => {
                round.pop();
                found.push(Lexeme::Close(Bracket::Round));
            }
            ']' if !square.is_empty() => {
                square.pop();
                found.push(Lexeme::Close(Bracket::Square));
            }
            ':' => match (weight_and_end(rest), round.pop()) {
                (Some((weight, end)), Some(open)) => {
                    length = end;
                    found[open] = Lexeme::Open(Bracket::Round, weight);
                    found.push(Lexeme::Close(Bracket::Round));
                }
                (_, open) => {
                    round.extend(open);
                    found.push(Lexeme::Text(&rest[..length]));
                }
            },
            ')' | ']' => found.push(Lexeme::Text(&rest[..length])),
            _ => {
                length = rest
                    .find(['\\', '(', ')', '[', ']', ':'])
                    .unwrap_or(rest.len());
                split_at_breaks(&rest[..length], &mut found);
            }
        }
        rest = &rest[length..];
    }
    found
}

/// The number in `:1.3)`, at the start of `text`, and the length of it all.
fn weight_and_end(text: &str) -> Option<(f64, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let after = number
        .trim_start_matches(['+', '-'])
        .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    // Refuses more than one sign or point.
    let weight = number[..number.len() - after.len()].parse().ok()?;
    let behind = after.trim_start().strip_prefix(')')?;
    Some((weight, text.len() - behind.len()))
}

/// Cuts `run`, which holds no character of the syntax, at the words `BREAK` in it.
fn split_at_breaks<'a>(run: &'a str, found: &mut Vec<Lexeme<'a>>) {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut from = 0;
    for (at, _) in run.match_indices(BREAK) {
        let end = at + BREAK.len();
        if run[..at].ends_with(in_word) || run[end..].starts_with(in_word) {
            continue;
        }
        let before = &run[from..at];
        let before = if from == 0 {
            before
        } else {
            before.trim_start()
        };
        found.push(Lexeme::Text(before.trim_end()));
        found.push(Lexeme::Break);
        from = end;
    }
    let last = &run[from..];
    found.push(Lexeme::Text(if from == 0 {
        last
    } else {
        last.trim_start()
    }));
}
