//! Prompts to tokens and weights, against what tools/reference/prompt_weights.py makes of the same texts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gststreamdiffusion::model::prompt::{self, Piece};
use gststreamdiffusion::model::{Chunk, ModelFolder, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    chunks: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<i64>,
    weights: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn tokenizer() -> Tokenizer {
    let folder = ModelFolder::open(&data("parity/model")).unwrap();
    folder.text_encoders()[0].tokenizer.clone()
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(data("prompts.json")).unwrap()).unwrap()
}

#[test]
fn chunks_are_those_of_the_reference() {
    let tokenizer = tokenizer();
    for case in cases() {
        let found = tokenizer.chunks(&case.text).unwrap();
        let ids: Vec<_> = found.iter().map(|chunk| &chunk.ids).collect();
        let expected: Vec<_> = case.chunks.iter().map(|chunk| &chunk.ids).collect();
        assert_eq!(ids, expected, "{:?}", case.text);
        for (found, expected) in found.iter().zip(&case.chunks) {
            assert_eq!(found.weights.len(), expected.weights.len());
            for (a, b) in found.weights.iter().zip(&expected.weights) {
                assert!((a - b).abs() <= 1e-6 * b, "{:?}: {found:?}", case.text);
            }
            let weighted = expected.weights.iter().any(|w| (w - 1.0).abs() > 1e-6);
            assert_eq!(found.is_weighted(), weighted, "{:?}", case.text);
        }
    }
}

#[test]
fn weighted_embeddings_are_those_of_the_reference() {
    let cases = cases();
    let mut archive = npyz::npz::NpzArchive::open(data("prompts.npz")).unwrap();
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    let mut read =
        |name: &str| -> Vec<f32> { archive.by_name(name).unwrap().unwrap().into_vec().unwrap() };
    let empty = read("empty");
    let mut checked = 0;
    for name in names {
        let Some(place) = name.strip_suffix(".plain") else {
            continue;
        };
        let case = &cases[place.parse::<usize>().unwrap()];
        let mut embedding = read(&name);
        let expected = read(&format!("{place}.weighted"));
        assert_eq!(embedding.len(), case.chunks.len() * empty.len());
        let rows = embedding.chunks_exact_mut(empty.len());
        for (row, chunk) in rows.zip(&case.chunks) {
            prompt::weigh(row, &empty, &chunk.weights);
        }
        for (a, b) in embedding.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{:?}: {a}, not {b}", case.text);
        }
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn weights_of_one_change_nothing() {
    let before: Vec<f32> = (0..32).map(|i| 0.1 + i as f32 / 3.0).collect();
    let mut after = before.clone();
    prompt::weigh(&mut after, &[0.7; 32], &[1.0; 16]);
    assert_eq!(after, before);
    prompt::weigh(&mut after, &[0.7; 32], &[0.0; 16]);
    assert_eq!(after, [0.7; 32]);
    // Nothing to weigh.
    prompt::weigh(&mut [], &[], &[]);
}

#[test]
fn plain_text_has_the_tokens_it_always_had() {
    let tokenizer = tokenizer();
    for text in [
        "",
        "a neon cat",
        " A  Neon\n\tCat e\u{301} ",
        "a cat: it's 1984!?",
        "a <|startoftext|><|endoftext|> b",
        "\0\u{1f600}\u{202e}\u{10ffff}",
        "!\"#$%&'''s",
    ] {
        let [chunk] = &tokenizer.chunks(text).unwrap()[..] else {
            panic!("{text:?} has several chunks");
        };
        assert_eq!(chunk.ids, tokenizer.encode(text).unwrap(), "{text:?}");
        assert!(!chunk.is_weighted());
    }
    assert_eq!(tokenizer.empty(), tokenizer.chunks("").unwrap()[0]);
}

#[test]
fn parts_keep_their_text() {
    let part = |text: &str, weight| Piece::Part {
        text: text.into(),
        weight,
    };
    assert_eq!(
        prompt::parse("a (big:1.5) \\(red\\)\tBREAK  [cat] ").unwrap(),
        [
            part("a ", 1.0),
            part("big", 1.5),
            part(" (red)", 1.0),
            Piece::Break,
            part("cat", (1.0f64 / 1.1) as f32),
            part(" ", 1.0),
        ]
    );
    assert_eq!(prompt::parse("").unwrap(), []);
    // Brackets that undo each other leave one part.
    assert_eq!(prompt::parse("a ([b]) c").unwrap(), [part("a b c", 1.0)]);
}

#[test]
fn what_cannot_be_served_names_the_property() {
    let tokenizer = tokenizer();
    for (text, what) in [
        ("(cat:11)", "11"),
        ("a (cat:-1)", "-1"),
        (&format!("(cat:{})", "9".repeat(400)), "inf"),
        (&format!("{}cat", "(".repeat(60_000)), "inf"),
        (&format!("{}cat:0)", "(".repeat(60_000)), "NaN"),
        (&"BREAK ".repeat(33), "32 chunks"),
        (&"cat ".repeat(32 * 14 + 1), "32 chunks"),
        (&"x".repeat(70_000), "70000 bytes"),
    ] {
        let error = tokenizer.chunks(text).unwrap_err().to_string();
        assert!(error.starts_with("property prompt: "), "{error}");
        assert!(
            error.contains(what) && error.contains("expected"),
            "{error}"
        );
        assert!(error.len() < 200, "{error}");
    }
    assert_eq!(tokenizer.chunks(&"BREAK ".repeat(32)).unwrap().len(), 32);
    let longest = "cat ".repeat(32 * 14);
    assert_eq!(tokenizer.chunks(&longest).unwrap().len(), 32);
}

fn check(tokenizer: &Tokenizer, chunks: &[Chunk]) {
    assert!((1..=32).contains(&chunks.len()));
    for chunk in chunks {
        assert_eq!(chunk.ids.len(), tokenizer.length());
        assert_eq!(chunk.weights.len(), tokenizer.length());
        assert_eq!(chunk.ids[0], 524);
        let end = chunk.ids.iter().rposition(|id| *id != 525).unwrap() + 1;
        assert!(chunk.weights[end..].iter().all(|w| *w == 1.0));
        assert!(chunk.weights.iter().all(|w| (0.0..=10.0).contains(w)));
    }
}

#[test]
fn texts_made_to_upset_a_parser_do_not() {
    let tokenizer = tokenizer();
    for pattern in [
        "(",
        ")",
        "[",
        "]",
        "\\",
        ":",
        "(:",
        "(:1",
        "(a",
        "[a",
        "(a:1)",
        "((a)",
        "[]",
        "()",
        "([)]",
        ": ",
        "(a:1 ",
        "BREAK",
        "\u{301}",
        "\u{3000}",
        "\\\u{1f600}",
        "(\u{1f600}:",
        "a:1.)",
        "(a:.)",
    ] {
        let text = pattern.repeat((64 << 10) / pattern.len());
        let begin = Instant::now();
        let _ = prompt::parse(&text);
        let taken = begin.elapsed();
        // Far above what a debug build takes, far below what anything quadratic would.
        assert!(taken < Duration::from_secs(3), "{pattern:?}: {taken:?}");
        if let Ok(chunks) = tokenizer.chunks(&pattern.repeat(2000 / pattern.len())) {
            check(&tokenizer, &chunks);
        }
    }
}

/// Any string of the syntax's own characters, by a small congruential generator.
#[test]
fn random_texts_give_whole_chunks() {
    let tokenizer = tokenizer();
    let pieces = [
        "(",
        ")",
        "[",
        "]",
        "\\",
        ":",
        "1.3",
        "0",
        ")",
        " ",
        "BREAK",
        "cat",
        "é",
        "\u{1f600}",
        ",",
        "\n",
        "neon ",
        ".",
    ];
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut served = 0;
    for _ in 0..600 {
        let text: String = (0..next(40)).map(|_| pieces[next(pieces.len())]).collect();
        if let Ok(chunks) = tokenizer.chunks(&text) {
            check(&tokenizer, &chunks);
            served += 1;
        }
    }
    assert!(served > 500, "{served}");
}
