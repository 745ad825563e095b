//! Mixes of prompts, and the way from one prompt to the next, against pictures made with embeddings that are blended here.

mod common;

use std::sync::Arc;

use common::*;
use gst::prelude::*;
use gststreamdiffusion::device::{Host, HostTensor};
use gststreamdiffusion::engine::{Model, Text, shared};
use gststreamdiffusion::stream::{
    self, CfgType, Conditioning, Contexts, Guidance, Method, Stream, Variation,
};

const CAT: &str = "a neon cat";
const SEA: &str = "a calm sea";
/// Takes two chunks.
const LONG: &str = "oil ink neon BREAK a dog";
/// One step, so that a picture shows one prompt.
const ONE_STEP: &[Setting] = &[("t-index-list", "35"), ("cfg-type", "none")];
/// The same with the negative prompt.
const FULL: &[Setting] = &[
    ("t-index-list", "35"),
    ("cfg-type", "full"),
    ("guidance-scale", "2"),
];

/// A model, run by hand.
struct Reference(Arc<shared::Loaded>);

impl Reference {
    fn new() -> Self {
        Self::of("parity/model")
    }

    fn of(model: &str) -> Self {
        init();
        Self(shared::load(&data(model)).unwrap())
    }

    fn embed(&self, text: &str, chunks: usize) -> Text<HostTensor> {
        self.0.model.encode_text(Some(text), chunks).unwrap()
    }

    /// `(1 − share)·a + share·b`.
    fn mean(&self, [a, b]: [&str; 2], share: f32, chunks: usize) -> Text<HostTensor> {
        mean(&self.embed(a, chunks), &self.embed(b, chunks), share)
    }

    /// sin((1 − t)·θ)/sin θ·a + sin(t·θ)/sin θ·b, for each token.
    fn arc(&self, [a, b]: [&str; 2], share: f64) -> Text<HostTensor> {
        let dot =
            |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
        blend(&self.embed(a, 1), &self.embed(b, 1), |a, b| {
            let cosine = dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt();
            // The start token is the same in both.
            let (p, q) = match cosine > 1.0 - 1e-9 {
                true => (1.0 - share, share),
                false => {
                    let angle = cosine.acos();
                    let factor = |x: f64| (x * angle).sin() / angle.sin();
                    (factor(1.0 - share), factor(share))
                }
            };
            let mixed = a.iter().zip(b);
            let mixed = mixed.map(|(a, b)| p * f64::from(*a) + q * f64::from(*b));
            mixed.map(|x| x as f32).collect()
        })
    }

    /// What becomes of [`picture`] 0 under these embeddings.
    fn restyle(
        &self,
        prompt: Text<HostTensor>,
        negative: Text<HostTensor>,
        cfg_type: CfgType,
    ) -> Vec<u8> {
        let contexts = |text| Contexts::new(Arc::new(text));
        let settings = stream::Settings {
            num_inference_steps: 50,
            t_index_list: vec![35],
            method: Method::Lcm,
            guidance: Guidance {
                cfg_type,
                scale: 2.0,
                delta: 1.0,
            },
            mode: stream::Mode::ImageToImage,
            seed: 2,
            variation: Variation::Fixed,
            add_noise: true,
            mix: 1.0,
            similarity: None,
        };
        let conditioning = Conditioning {
            prompt: contexts(prompt),
            negative: contexts(negative),
        };
        let mut stream = Stream::new(
            Host,
            self.0.model.clone(),
            self.0.folder.scheduler().clone(),
            (64, 64),
            1,
            settings,
            conditioning,
        )
        .unwrap();
        let rgb = picture(0);
        let plane = |c| rgb.iter().skip(c).step_by(3);
        let data = (0..3).flat_map(plane).map(|x| f32::from(*x) / 127.5 - 1.0);
        let input = HostTensor::new(&[1, 3, 64, 64], data.collect());
        let shown = stream.submit(input, ()).unwrap();
        let output = shown[0].picture.data();
        let pixel = |i: usize| output[i % 3 * 64 * 64 + i / 3];
        let code = |x: f32| ((x + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
        (0..rgb.len()).map(|i| code(pixel(i))).collect()
    }

    fn plain(&self, prompt: Text<HostTensor>) -> Vec<u8> {
        self.restyle(prompt.clone(), prompt, CfgType::None)
    }
}

/// Blends texts token by token.
fn blend(
    a: &Text<HostTensor>,
    b: &Text<HostTensor>,
    of_token: impl Fn(&[f32], &[f32]) -> Vec<f32>,
) -> Text<HostTensor> {
    let tensor = |a: &HostTensor, b: &HostTensor| {
        assert_eq!(a.shape(), b.shape());
        let width = *a.shape().last().unwrap();
        let tokens = a.data().chunks(width).zip(b.data().chunks(width));
        let data = tokens.flat_map(|(a, b)| of_token(a, b)).collect();
        HostTensor::new(a.shape(), data)
    };
    let pooled = a.pooled.as_ref().zip(b.pooled.as_ref());
    Text {
        embedding: tensor(&a.embedding, &b.embedding),
        pooled: pooled.map(|(a, b)| tensor(a, b)),
    }
}

/// `(1 − share)·a + share·b`.
fn mean(a: &Text<HostTensor>, b: &Text<HostTensor>, share: f32) -> Text<HostTensor> {
    blend(a, b, |a, b| {
        let both = a.iter().zip(b);
        both.map(|(a, b)| (1.0 - share) * a + share * b).collect()
    })
}

/// What the element makes of it.
fn element(base: &[Setting], settings: &[Setting]) -> Vec<u8> {
    let settings = join(base, settings);
    restyle(&settings, &rgb(), vec![buffer(picture(0), 0)]).remove(0)
}

#[test]
fn a_mix_is_the_blend_of_its_embeddings() {
    let reference = Reference::new();
    let cat = element(ONE_STEP, &[("prompt", CAT)]);
    let sea = element(ONE_STEP, &[("prompt", SEA)]);
    same(
        &cat,
        &reference.plain(reference.embed(CAT, 1)),
        "the reference itself",
    );
    let mix = |prompt, interpolation| {
        let settings = [("prompt", prompt), ("prompt-interpolation", interpolation)];
        element(ONE_STEP, &settings)
    };
    let linear = mix("a neon cat:3 | a calm sea", "linear");
    let expected = reference.plain(reference.mean([CAT, SEA], 0.25, 1));
    same(&linear, &expected, "linear");
    let slerp = mix("a neon cat:3 | a calm sea", "slerp");
    let expected = reference.plain(reference.arc([CAT, SEA], 0.25));
    same(&slerp, &expected, "slerp");
    for (a, b) in [
        (&linear, &cat),
        (&linear, &sea),
        (&slerp, &cat),
        (&slerp, &linear),
    ] {
        assert!(difference(a, b) > 1);
    }
    // What used to be one prompt still is.
    let colon = element(ONE_STEP, &[("prompt", "a neon cat:3")]);
    same(
        &colon,
        &reference.plain(reference.embed("a neon cat:3", 1)),
        "no mix",
    );
    let bar = element(ONE_STEP, &[("prompt", r"a neon cat \| a calm sea")]);
    let expected = reference.embed("a neon cat | a calm sea", 1);
    same(&bar, &reference.plain(expected), "no mix");
}

/// Two text encoders, a pooled embedding, and any number of chunks: all parts are encoded in that of the longest.
#[test]
fn all_outputs_of_the_text_encoders_are_blended() {
    let reference = Reference::of("models/sdxl");
    let model = data("models/sdxl").display().to_string();
    let base = join(ONE_STEP, &[("model", &model)]);
    let prompt = format!("{CAT}:3 | {LONG}");
    let mix = |interpolation| {
        let settings = [
            ("prompt", prompt.as_str()),
            ("prompt-interpolation", interpolation),
        ];
        element(&base, &settings)
    };
    let linear = mix("linear");
    let text = reference.mean([CAT, LONG], 0.25, 2);
    assert!(text.pooled.is_some());
    same(&linear, &reference.plain(text.clone()), "linear");
    // The pooled embedding counts.
    let pooled = reference.embed(LONG, 1).pooled;
    let other = reference.plain(Text { pooled, ..text });
    assert!(difference(&linear, &other) > 1);
    assert!(difference(&linear, &mix("slerp")) > 1);
    let short = [
        ("prompt", "a neon cat:3 | a calm sea"),
        ("prompt-interpolation", "slerp"),
    ];
    let expected = reference.plain(reference.arc([CAT, SEA], 0.25));
    same(&element(&base, &short), &expected, "slerp");
}

#[test]
fn negative_prompts_may_be_mixes() {
    let reference = Reference::new();
    let settings = [
        ("prompt", CAT),
        ("negative-prompt", "ink:1.5|a calm sea:0.5"),
    ];
    let found = element(FULL, &settings);
    let negative = reference.mean(["ink", SEA], 0.25, 1);
    let expected = reference.restyle(reference.embed(CAT, 1), negative, CfgType::Full);
    same(&found, &expected, "a negative mix");
    let other = element(FULL, &[("prompt", CAT), ("negative-prompt", "ink")]);
    assert!(difference(&found, &other) > 1);
}

fn warning(message: &gst::Message) -> String {
    match message.view() {
        gst::MessageView::Warning(warning) => warning.error().message().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_mixes_are_errors_at_the_start_and_warnings_later() {
    keep_model();
    for (property, prompt, what) in [
        (
            "prompt",
            "a:0 | b",
            "property prompt: part 1 has the weight \"0\", expected a number above 0",
        ),
        (
            "negative-prompt",
            "a | b:c",
            "property negative-prompt: part 2 has the weight \"c\"",
        ),
        ("prompt", "a |", "property prompt: part 2 is empty"),
        (
            "prompt",
            "a | (b:99)",
            "property prompt: part 2 gives \"b\" the weight 99",
        ),
    ] {
        let rig = Rig::new(
            &join(ONE_STEP, &[(property, prompt)]),
            Neighbours::default(),
        );
        rig.play(&rgb());
        assert_eq!(rig.src.push(frame(0)), Err(gst::FlowError::Error));
        let error = rig.error();
        assert!(error.matches(gst::LibraryError::Settings), "{error}");
        assert!(error.message().contains(what), "{error}");

        let rig = Rig::playing(&join(ONE_STEP, &[("prompt", CAT)]), &rgb());
        rig.push(buffer(picture(0), 0));
        let before = rig.pictures().remove(0);
        set(&rig.element, &[(property, prompt)]);
        let mut told = Vec::new();
        for k in 1..400 {
            rig.push(buffer(picture(0), k));
            told.extend(rig.errors());
            if !told.is_empty() {
                break;
            }
        }
        let told: Vec<_> = told.iter().map(warning).collect();
        assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
        assert!(told[0].contains("the old value stays"), "{told:?}");
        for picture in rig.pictures() {
            same(&picture, &before, "the old prompt stays");
        }
    }
}

/// The pictures of frames 0, 1, …, all alike but for their prompts; `cues` name the frame from which on one is in force.
fn show(settings: &[Setting], cues: &[(u64, &str)], frames: u64) -> Vec<Vec<u8>> {
    let rig = Rig::playing(settings, &rgb());
    let src = gst::Pad::builder(gst::PadDirection::Src).build();
    let sink = rig.element.request_pad_simple("prompt").unwrap();
    src.link(&sink).unwrap();
    src.set_active(true).unwrap();
    src.push_event(gst::event::StreamStart::new("show"));
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    src.push_event(gst::event::Segment::new(&segment));
    for (k, prompt) in cues {
        src.push(buffer(prompt.as_bytes().to_vec(), *k)).unwrap();
    }
    src.push_event(gst::event::Eos::new());
    for k in 0..frames {
        rig.push(buffer(picture(0), k));
    }
    rig.end();
    let errors = rig.errors();
    assert!(errors.is_empty(), "{errors:?}");
    rig.pictures()
}

fn transition(frames: u64) -> String {
    time(frames).nseconds().to_string()
}

#[track_caller]
fn check(found: &[Vec<u8>], expected: &[Vec<u8>]) {
    assert_eq!(found.len(), expected.len());
    for (k, (found, expected)) in found.iter().zip(expected).enumerate() {
        same(found, expected, &format!("frame {k}"));
    }
}

#[test]
fn a_transition_goes_from_prompt_to_prompt_by_the_frames_times() {
    let reference = Reference::new();
    let mean = |share| reference.plain(reference.mean([CAT, SEA], share, 1));
    let arc = |share| reference.plain(reference.arc([CAT, SEA], share));
    let length = transition(4);
    let settings = |interpolation| {
        let settings = [
            ("prompt", CAT),
            ("prompt-transition", &length),
            ("prompt-interpolation", interpolation),
        ];
        join(ONE_STEP, &settings)
    };
    let shares = [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0];
    let found = show(&settings("linear"), &[(2, SEA)], 8);
    check(&found, &shares.map(mean));
    assert!(difference(&found[2], &found[4]) > 1 && difference(&found[4], &found[6]) > 1);
    let found = show(&settings("slerp"), &[(2, SEA)], 8);
    check(&found, &shares.map(|share| arc(f64::from(share))));
    // There and, by an empty cue, back.
    let shares = [
        0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0,
    ];
    let found = show(&settings("linear"), &[(2, SEA), (6, "")], 12);
    check(&found, &shares.map(mean));
    // Amid it, on to a mix: from what is in force at that moment.
    let found = show(&settings("linear"), &[(2, SEA), (4, "ink | a calm sea")], 9);
    let half = reference.mean([CAT, SEA], 0.5, 1);
    let mix = reference.mean(["ink", SEA], 0.5, 1);
    let then = |share| reference.plain(self::mean(&half, &mix, share));
    let expected = [mean(0.0), mean(0.0), mean(0.0), mean(0.25)];
    let expected = [&expected[..], &[0.0, 0.25, 0.5, 0.75, 1.0].map(then)].concat();
    check(&found, &expected);
}

/// From one chunk to two and back: the shorter is filled up as the encoder fills it.
#[test]
fn a_transition_takes_texts_of_several_lengths() {
    let reference = Reference::of("models/sdxl");
    let model = data("models/sdxl").display().to_string();
    let length = transition(2);
    let settings = [
        ("model", model.as_str()),
        ("prompt", CAT),
        ("prompt-transition", &length),
    ];
    let found = show(&join(ONE_STEP, &settings), &[(1, LONG), (4, CAT)], 8);
    let half = reference.plain(reference.mean([CAT, LONG], 0.5, 2));
    let cat = reference.plain(reference.embed(CAT, 1));
    let long = reference.plain(reference.embed(LONG, 2));
    let expected = [&cat, &cat, &half, &long, &long, &half, &cat, &cat];
    check(&found, &expected.map(Vec::clone));
    // With several steps, frames of both lengths are under way together; each is as if alone.
    let steps = [
        ("model", model.as_str()),
        ("t-index-list", "22,32,45"),
        ("cfg-type", "full"),
        ("guidance-scale", "1.5"),
        ("negative-prompt", "ink"),
    ];
    let alone = |prompt| element(&steps, &[("prompt", prompt)]);
    let (cat, long) = (alone(CAT), alone(LONG));
    let found = show(&join(&steps, &[("prompt", CAT)]), &[(1, LONG), (3, CAT)], 6);
    let expected = [&cat, &long, &long, &cat, &cat, &cat];
    check(&found, &expected.map(Vec::clone));
}

/// A property takes effect when it is encoded; from that frame on everything goes by the frames' times.
#[test]
fn changed_properties_turn_smoothly_too() {
    let reference = Reference::new();
    let length = transition(4);
    let settings = [
        ("prompt", CAT),
        ("negative-prompt", "ink"),
        ("prompt-transition", length.as_str()),
    ];
    let rig = Rig::playing(&join(FULL, &settings), &rgb());
    let shown = |k| {
        rig.push(buffer(picture(0), k));
        rig.pictures().remove(0)
    };
    let before = shown(0);
    set(&rig.element, &[("negative-prompt", SEA)]);
    // The first frame that differs is one frame, a quarter, on its way.
    let mut k = 0;
    let mut found = loop {
        k += 1;
        assert!(k < 400, "it does not change");
        let found = shown(k);
        if difference(&found, &before) > 0 {
            break vec![found];
        }
    };
    found.extend((k + 1..k + 5).map(shown));
    let expected = |share| {
        let negative = reference.mean(["ink", SEA], share, 1);
        reference.restyle(reference.embed(CAT, 1), negative, CfgType::Full)
    };
    check(&found, &[0.25, 0.5, 0.75, 1.0, 1.0].map(expected));
    // Without times frames count by their durations, and without those a change is there at once.
    set(&rig.element, &[("prompt", SEA)]);
    let negative = reference.embed(SEA, 1);
    let sea = reference.restyle(reference.embed(SEA, 1), negative, CfgType::Full);
    let first = loop {
        k += 1;
        assert!(k < 999, "it does not change");
        let mut untimed = buffer(picture(0), k);
        untimed.make_mut().set_pts(gst::ClockTime::NONE);
        rig.push(untimed);
        let found = rig.pictures().remove(0);
        if difference(&found, &expected(1.0)) > 1 {
            break found;
        }
    };
    let negative = reference.embed(SEA, 1);
    let quarter = reference.mean([CAT, SEA], 0.25, 1);
    same(
        &first,
        &reference.restyle(quarter, negative, CfgType::Full),
        "a quarter",
    );
    // Caps without a frame rate, and no durations.
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", 64)
        .field("height", 64)
        .field("framerate", gst::Fraction::new(0, 1));
    assert!(rig.caps(&caps.build()));
    rig.take();
    let mut untimed = gst::Buffer::from_mut_slice(picture(0));
    untimed.make_mut().set_offset(0);
    rig.push(untimed.copy());
    rig.push(untimed);
    let last = rig.pictures().pop().unwrap();
    same(&last, &sea, "at once");
}
