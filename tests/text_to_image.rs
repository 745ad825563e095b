//! `mode=txt2img`, the noise that frames start with, and prompts of several chunks.

mod common;

use common::*;

const TEXT: &[Setting] = &[
    ("mode", "txt2img"),
    ("prompt", "a neon cat"),
    ("cfg-type", "none"),
    ("steps", "2"),
];

/// One frame for each seed.
fn of_seeds(settings: &[Setting], seeds: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    seeds
        .map(|seed| {
            let seed = seed.to_string();
            restyled(&join(settings, &[("seed", &seed)]), 0..1).remove(0)
        })
        .collect()
}

#[test]
fn pictures_are_ignored_and_time_is_kept() {
    let rig = Rig::playing(TEXT, &rgb());
    rig.push_frames(0..5);
    rig.end();
    let (out, caps) = (rig.frames(), rig.output_caps());
    assert_eq!(out.len(), 5);
    let first = pixels(&out[0], &caps);
    for (k, frame) in out.iter().enumerate() {
        assert_eq!(frame.pts(), Some(time(k as u64)));
        same(&pixels(frame, &caps), &first, "another input");
    }
    assert!(rig.errors().is_empty());
    // It is a picture, of this prompt, and not what img2img makes.
    let spread = first.iter().max().unwrap() - first.iter().min().unwrap();
    assert!(spread > 60, "{spread}");
    let other = join(TEXT, &[("prompt", "a calm sea")]);
    assert!(difference(&restyled(&other, 0..1)[0], &first) > 4);
    let from_picture = join(TEXT, &[("mode", "img2img")]);
    assert!(difference(&restyled(&from_picture, 0..1)[0], &first) > 4);
}

/// What is not looked at cannot be like what came before.
#[test]
fn the_similarity_filter_skips_nothing() {
    let filter = [
        ("similarity-filter", "true"),
        ("ssf-threshold", "0"),
        ("noise", "fresh"),
    ];
    let rig = Rig::playing(&join(TEXT, &filter), &rgb());
    for k in 0..6 {
        rig.push(buffer(picture(0), k));
    }
    rig.end();
    assert_eq!(rig.pictures().len(), 6);
    assert_eq!(stat(&rig.element, "skipped"), 0);
}

#[test]
fn self_guidance_is_none_without_a_picture() {
    let with = |kind, scale| {
        restyled(
            &join(TEXT, &[("cfg-type", kind), ("guidance-scale", scale)]),
            0..1,
        )
    };
    let plain = with("none", "1");
    assert_eq!(with("self", "1.8"), plain);
    assert!(difference(&with("full", "1.8")[0], &plain[0]) > 4);
    assert!(difference(&with("initialize", "1.8")[0], &plain[0]) > 4);
}

#[test]
fn fresh_noise_is_that_of_the_next_seed() {
    for mode in ["txt2img", "img2img"] {
        // One step: later steps have the noise of the seed that was set, not of the frame's.
        let settings = join(TEXT, &[("mode", mode), ("t-index-list", "16")]);
        let expected = of_seeds(&settings, 5..9);
        let fresh = join(&settings, &[("noise", "fresh"), ("seed", "5")]);
        let rig = Rig::playing(&fresh, &rgb());
        for k in 0..4 {
            rig.push(buffer(picture(0), k));
        }
        rig.end();
        for (found, expected) in rig.pictures().iter().zip(&expected) {
            same(found, expected, mode);
        }
        assert!(difference(&expected[0], &expected[1]) > 4);
    }
}

#[test]
fn a_walk_goes_from_seed_to_seed() {
    let settings = join(TEXT, &[("t-index-list", "0")]);
    let ends = of_seeds(&settings, 5..7);
    let walk = [("noise", "walk"), ("noise-walk-frames", "8"), ("seed", "5")];
    let rig = Rig::playing(&join(&settings, &walk), &rgb());
    rig.push_frames(0..9);
    rig.end();
    let found = rig.pictures();
    same(&found[0], &ends[0], "the first frame");
    same(&found[8], &ends[1], "the frame after eight steps");
    let whole = mean_difference(&ends[0], &ends[1]);
    for pair in found.windows(2) {
        let step = mean_difference(&pair[0], &pair[1]);
        assert!(step > 0.0 && step < 0.7 * whole, "{step} of {whole}");
    }
}

/// Primed with copies of the first frame, one out for one in.
#[test]
fn it_also_runs_at_once() {
    let immediate = [("timing", "immediate"), ("noise", "fresh"), ("steps", "4")];
    let rig = Rig::playing(&join(TEXT, &immediate), &rgb());
    for k in 0..4 {
        rig.push(frame(k));
        assert_eq!(rig.frames().len(), 1);
    }
}

const LONG: &str = "a neon cat in the rain, seen from above by night, thick oil paint on a rough canvas, wet streets and yellow \
lamps, far hills under a pale moon, great detail, a cat, a neon cat";

/// Frames under way keep their prompt beside those that come in with a new one, however long either is.
#[test]
fn a_prompt_may_grow_and_shrink_while_frames_are_under_way() {
    let model = data("models/sd1").display().to_string();
    let with = |prompt| {
        [
            ("model", &model[..]),
            ("prompt", prompt),
            ("negative-prompt", "ink"),
            ("t-index-list", "22,32,45"),
            ("cfg-type", "full"),
            ("guidance-scale", "1.5"),
        ]
    };
    let [long, short] = [LONG, "a calm sea"].map(|prompt| restyled(&with(prompt), 0..1).remove(0));
    assert!(difference(&long, &short) > 4);
    let rig = Rig::playing(&with(LONG), &rgb());
    let shown = |k, expected: &[u8]| {
        rig.push(buffer(picture(0), k));
        let found = rig.pictures();
        found.last().is_some_and(|f| difference(f, expected) <= 1)
    };
    assert!((0..9).any(|k| shown(k, &long)));
    for (round, (prompt, expected)) in [("a calm sea", &short), (LONG, &long)].iter().enumerate() {
        set(&rig.element, &[("prompt", prompt)]);
        let first = 9 + 500 * round as u64;
        assert!((first..first + 500).any(|k| shown(k, expected)));
    }
    assert!(rig.errors().is_empty());
}

/// The parity model's U-Net takes one chunk.
#[test]
fn what_a_model_has_no_room_for_is_told_once() {
    let rig = Rig::playing(&[("prompt", LONG)], &rgb());
    rig.push_frames(0..5);
    rig.end();
    assert_eq!(rig.pictures().len(), 5);
    let told = rig.errors();
    assert_eq!(told.len(), 1, "{told:?}");
    let gst::MessageView::Warning(warning) = told[0].view() else {
        panic!("{told:?}");
    };
    let text = warning.error().to_string();
    assert!(
        text.contains("prompt") && text.contains("room for 1"),
        "{text}"
    );
}
