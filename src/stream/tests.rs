//! The stream with scalar latents and a made-up U-Net, against the numbers of tools/reference/stream_scalar.py.

use std::sync::Mutex;

use super::*;
use crate::device::{Host, HostTensor};
use crate::engine::{Denoise, Limits, Text, Wording};

/// One latent value per frame: the picture's first channel. The U-Net is `0.5·x + text − 0.0005·t`.
#[derive(Default)]
pub(super) struct Scalar {
    /// Rows of each U-Net call: timestep and text.
    calls: Mutex<Vec<Vec<(u32, f32)>>>,
    /// Timesteps and text of each pre-computation.
    precomputed: Mutex<Vec<(Vec<u32>, f32)>>,
}

pub(super) fn text(x: f32) -> Text<HostTensor> {
    Text {
        embedding: HostTensor::new(&[1, 1, 1], vec![x]),
        pooled: None,
    }
}

/// Timestep and text of a row.
fn row(row: &Denoise<Scalar>) -> (u32, f32) {
    *row.context
}

const LIMITS: Limits = Limits {
    latent_channels: 1,
    latent_scale: 1,
    multiple: 1,
    fixed_size: None,
    chunks: None,
    samples_posterior: false,
    built: None,
};
const PROMPT: f32 = 0.2;
const NEGATIVE: f32 = -0.1;

impl Model for Scalar {
    type Tensor = HostTensor;
    type Context = (u32, f32);

    fn limits(&self) -> &Limits {
        &LIMITS
    }

    fn chunks(&self, _: &str) -> Result<usize> {
        Ok(1)
    }

    fn encode_text(&self, _: Option<&str>, _: usize) -> Result<Text<HostTensor>> {
        Ok(text(PROMPT))
    }

    /// Timestep and text, as they are.
    fn precompute(
        &self,
        timesteps: &[u32],
        wording: &Wording,
        size: (usize, usize),
        like: Option<&(u32, f32)>,
    ) -> Result<Vec<(u32, f32)>> {
        assert_eq!(size, (1, 1));
        let text = wording.text().embedding.data()[0];
        let mut precomputed = self.precomputed.lock().unwrap();
        precomputed.push((timesteps.to_vec(), text));
        assert!(like.is_none_or(|like| like.1 == text));
        Ok(timesteps.iter().map(|t| (*t, text)).collect())
    }

    fn encode(&self, pictures: &HostTensor, _: Option<&HostTensor>) -> Result<HostTensor> {
        let data: Vec<f32> = pictures.data().iter().copied().step_by(3).collect();
        Ok(HostTensor::new(&[data.len(), 1, 1, 1], data))
    }

    fn denoise(&self, rows: &[Denoise<'_, Self>]) -> Result<Vec<HostTensor>> {
        self.calls
            .lock()
            .unwrap()
            .push(rows.iter().map(row).collect());
        Ok(rows
            .iter()
            .map(|r| {
                let (timestep, text) = row(r);
                let mut m = r.sample.clone();
                for x in m.data_mut() {
                    *x = 0.5 * *x + text - 0.0005 * timestep as f32;
                }
                m
            })
            .collect())
    }

    fn decode(&self, latents: &HostTensor) -> Result<HostTensor> {
        let data = latents.data().iter().flat_map(|z| [*z; 3]).collect();
        Ok(HostTensor::new(&[latents.data().len(), 3, 1, 1], data))
    }
}

type TestStream = Stream<Host, Scalar, usize>;

fn settings(indices: &[usize], cfg_type: CfgType, scale: f64, delta: f64) -> Settings {
    Settings {
        num_inference_steps: 50,
        t_index_list: indices.to_vec(),
        method: Method::Lcm,
        guidance: Guidance {
            cfg_type,
            scale,
            delta,
        },
        mode: Mode::ImageToImage,
        seed: 2,
        variation: Variation::Fixed,
        add_noise: true,
        similarity: None,
        mix: 1.0,
    }
}

pub(super) fn plain(indices: &[usize]) -> Settings {
    settings(indices, CfgType::None, 1.0, 1.0)
}

fn stream(settings: Settings, f: usize, noise: &[f32]) -> (TestStream, Arc<Scalar>) {
    let model = Arc::new(Scalar::default());
    let mut stream = new(settings, f, &model);
    inject(&mut stream, noise);
    (stream, model)
}

/// A stream with the noise of its seed.
fn new(settings: Settings, f: usize, model: &Arc<Scalar>) -> TestStream {
    Stream::new(
        Host,
        model.clone(),
        SchedulerConfig::default(),
        (1, 1),
        f,
        settings,
        Conditioning {
            prompt: Contexts::new(Arc::new(text(PROMPT))),
            negative: Contexts::new(Arc::new(text(NEGATIVE))),
        },
    )
    .unwrap()
}

/// Replaces the noise that the seed stands for.
fn inject(stream: &mut TestStream, noise: &[f32]) {
    let map = |e: &f32| HostTensor::new(&[1, 1, 1, 1], vec![*e]);
    stream.plan = Arc::new(Plan {
        steps: stream.plan.steps.clone(),
        noise: noise.iter().map(map).collect(),
    });
}

fn picture(z: f32) -> HostTensor {
    HostTensor::new(&[1, 3, 1, 1], vec![z; 3])
}

fn values(shown: Vec<Shown<HostTensor, usize>>) -> Vec<(usize, f32)> {
    shown
        .iter()
        .map(|shown| (shown.tag, shown.picture.data()[0]))
        .collect()
}

fn assert_close(shown: &[(usize, f32)], expected: &[f32], what: &str) {
    assert_eq!(shown.len(), expected.len(), "{what}: {shown:?}");
    for (frame, ((tag, value), expected)) in shown.iter().zip(expected).enumerate() {
        assert_eq!(*tag, frame, "{what}");
        assert!(
            (value - expected).abs() < 2e-5,
            "{what}, frame {frame}: {value}, not {expected}"
        );
    }
}

const INPUTS: [f32; 4] = [1.0, 0.8, 0.6, 0.4];

fn run(stream: &mut TestStream) -> Vec<(usize, f32)> {
    let mut shown = Vec::new();
    for (tag, z) in INPUTS.into_iter().enumerate() {
        shown.extend(values(stream.submit(picture(z), tag).unwrap()));
    }
    shown.extend(values(stream.drain().unwrap()));
    shown
}

type Golden = (&'static [usize], &'static [f32], [[f32; 4]; 4]);

/// Modes none, full (1.2), self (1.2, 0.5), initialize (1.2, 0.5).
const WITH_NOISE: [Golden; 3] = [
    (
        &[32, 45],
        &[0.3, -0.7],
        [
            [0.434628, 0.326741, 0.218855, 0.110968],
            [0.362965, 0.255078, 0.147192, 0.039305],
            [0.303123, 0.219449, 0.135776, 0.052102],
            [0.279471, 0.182206, 0.084941, -0.012324],
        ],
    ),
    (
        &[22, 32, 45],
        &[0.3, -0.7, 0.5],
        [
            [0.250998, 0.191249, 0.1315, 0.071751],
            [0.115337, 0.055588, -0.004161, -0.063911],
            [0.04795, 0.029488, 0.011025, -0.007437],
            [-0.111181, -0.152086, -0.192991, -0.233897],
        ],
    ),
    (
        &[35],
        &[0.3],
        [
            [0.808254, 0.672115, 0.535975, 0.399836],
            [0.758463, 0.622323, 0.486184, 0.350044],
            [0.745009, 0.621642, 0.498275, 0.374907],
            [0.739288, 0.609535, 0.479781, 0.350028],
        ],
    ),
];

/// The same without noise added between steps.
const WITHOUT_NOISE: [Golden; 2] = [
    (
        &[32, 45],
        &[0.3, -0.7],
        [
            [0.635135, 0.527248, 0.419362, 0.311475],
            [0.563472, 0.455585, 0.347699, 0.239812],
            [0.519814, 0.436141, 0.352467, 0.268794],
            [0.496162, 0.398897, 0.301632, 0.204367],
        ],
    ),
    (
        &[22, 32, 45],
        &[0.3, -0.7, 0.5],
        [
            [0.491856, 0.432107, 0.372358, 0.312609],
            [0.356195, 0.296446, 0.236697, 0.176948],
            [0.326757, 0.308295, 0.289833, 0.27137],
            [0.167626, 0.126721, 0.085816, 0.04491],
        ],
    ),
];

const MODES: [(CfgType, f64, f64); 4] = [
    (CfgType::None, 1.0, 1.0),
    (CfgType::Full, 1.2, 1.0),
    (CfgType::SelfNegative, 1.2, 0.5),
    (CfgType::Initialize, 1.2, 0.5),
];

#[test]
fn golden_numbers_in_every_mode_and_group_size() {
    let with = WITH_NOISE.iter().map(|golden| (golden, true));
    let without = WITHOUT_NOISE.iter().map(|golden| (golden, false));
    for (&(indices, noise, expected), add_noise) in with.chain(without) {
        for (mode, expected) in MODES.iter().zip(expected) {
            // Groups of 1 to 5: also one that four frames do not fill.
            for f in 1..=5 {
                let mut settings = settings(indices, mode.0, mode.1, mode.2);
                settings.add_noise = add_noise;
                let (mut stream, _) = stream(settings, f, noise);
                let what = format!("{indices:?} {mode:?} f={f} add_noise={add_noise}");
                assert_close(&run(&mut stream), &expected, &what);
            }
        }
    }
}

#[test]
fn guidance_of_one_is_no_guidance() {
    for (cfg_type, _, delta) in MODES {
        let (mut stream, model) =
            stream(settings(&[32, 45], cfg_type, 1.0, delta), 1, &[0.3, -0.7]);
        assert_close(&run(&mut stream), &WITH_NOISE[0].2[0], "scale 1");
        assert!(
            model
                .calls
                .lock()
                .unwrap()
                .iter()
                .flatten()
                .all(|row| row.1 == PROMPT)
        );
    }
}

#[test]
fn one_call_holds_every_slot_at_its_own_step() {
    let (mut full, model) = stream(
        settings(&[32, 45], CfgType::Full, 1.2, 1.0),
        1,
        &[0.3, -0.7],
    );
    run(&mut full);
    let calls = model.calls.lock().unwrap();
    assert_eq!(calls[0], [(359, PROMPT), (359, NEGATIVE)]);
    assert_eq!(
        calls[1],
        [(359, PROMPT), (99, PROMPT), (359, NEGATIVE), (99, NEGATIVE)]
    );
    assert_eq!(
        calls.len(),
        INPUTS.len() + 1,
        "one call a frame, one to drain"
    );

    let initialize = settings(&[32, 45], CfgType::Initialize, 1.2, 1.0);
    let (mut stream, model) = stream(initialize, 1, &[0.3, -0.7]);
    run(&mut stream);
    let calls = model.calls.lock().unwrap();
    assert_eq!(calls[1], [(359, PROMPT), (99, PROMPT), (359, NEGATIVE)]);
    assert_eq!(calls[4], [(99, PROMPT)], "draining adds no negative row");
}

#[test]
fn delay_is_steps_times_group_less_one() {
    for (indices, f) in [(&[32][..], 1), (&[32, 45], 1), (&[22, 32, 45], 2)] {
        let (mut stream, _) = stream(plain(indices), f, &[0.1, 0.2, 0.3][..indices.len()]);
        let delay = indices.len() * f - 1;
        assert_eq!(stream.delay(), delay);
        let first = (0..).find(|tag| !stream.submit(picture(0.0), *tag).unwrap().is_empty());
        assert_eq!(first, Some(delay));
    }
}

#[test]
fn a_primed_stream_gives_a_picture_at_once() {
    for (indices, f) in [(&[32][..], 1), (&[32, 45], 1), (&[22, 32, 45], 2)] {
        let noise = &[0.3, -0.7, 0.5][..indices.len()];
        let alone = {
            let (mut stream, _) = stream(plain(indices), 1, noise);
            let mut shown = stream.submit(picture(1.0), 0).unwrap();
            shown.extend(stream.drain().unwrap());
            values(shown)[0].1
        };
        let (mut stream, _) = stream(plain(indices), f, noise);
        stream.prime(&Expected::new(picture(1.0)), &7).unwrap();
        let shown = values(stream.submit(picture(1.0), 7).unwrap());
        assert_eq!(shown.len(), f);
        assert!((shown[0].1 - alone).abs() < 1e-6);
    }
}

/// Frames keep the steps and the noise they entered with, whatever the list changes to, and leave in order.
#[test]
fn changing_the_steps_never_disturbs_frames_in_flight() {
    let lists: [(&[usize], &[f32], usize); 3] = [
        (&[32, 45], &[0.3, -0.7], 0),
        (&[22, 32, 45], &[0.3, -0.7, 0.5], 1),
        (&[35], &[0.3], 2),
    ];
    for from in lists {
        for to in lists {
            let (mut stream, _) = stream(plain(from.0), 1, from.1);
            let mut shown = Vec::new();
            for (tag, z) in INPUTS.into_iter().enumerate() {
                if tag == 2 {
                    stream.configure(&plain(to.0)).unwrap();
                    inject(&mut stream, to.1);
                }
                shown.extend(values(stream.submit(picture(z), tag).unwrap()));
            }
            shown.extend(values(stream.drain().unwrap()));
            let expected = [(from, 0), (from, 1), (to, 2), (to, 3)]
                .map(|(list, frame)| WITH_NOISE[list.2].2[0][frame]);
            assert_close(&shown, &expected, &format!("{:?} to {:?}", from.0, to.0));
        }
    }
}

/// A controller may move the steps at every frame: the noise is drawn once per seed and number of steps.
#[test]
fn noise_is_drawn_again_only_for_another_seed_or_number_of_steps() {
    let (mut stream, _) = stream(plain(&[32, 45]), 1, &[0.3, -0.7]);
    let mut redrawn = |settings: Settings| {
        let before = stream.plan.noise.clone();
        stream.configure(&settings).unwrap();
        !Arc::ptr_eq(&before, &stream.plan.noise)
    };
    assert!(!redrawn(plain(&[30, 40])));
    assert!(redrawn(plain(&[22, 32, 45])));
    let seed = Settings {
        seed: 3,
        ..plain(&[22, 32, 45])
    };
    assert!(redrawn(seed.clone()));
    assert!(!redrawn(seed));
}

#[test]
fn bad_settings_leave_the_old_ones_in_force() {
    let (mut stream, _) = stream(plain(&[32, 45]), 1, &[0.3, -0.7]);
    assert!(stream.configure(&plain(&[45, 32])).is_err());
    assert!(stream.configure(&plain(&[50])).is_err());
    assert_close(&run(&mut stream), &WITH_NOISE[0].2[0], "after errors");
}

fn still(max_skip: u32) -> Settings {
    Settings {
        similarity: Some(Similarity {
            threshold: 0.5,
            max_skip,
        }),
        ..plain(&[32, 45])
    }
}

/// A picture that stands still is skipped, yet the frame in flight is finished; then nothing runs.
#[test]
fn skipped_frames_advance_those_in_flight_and_share_their_picture() {
    let (mut stream, model) = stream(still(10), 1, &[0.3, -0.7]);
    let mut submit = |tag| stream.submit(picture(1.0), tag).unwrap();
    assert!(submit(0).is_empty());
    let shown = submit(1);
    assert!(Arc::ptr_eq(&shown[0].picture, &shown[1].picture));
    assert_close(&values(shown), &[0.434628; 2], "both at once");
    let calls = model.calls.lock().unwrap().len();
    assert_eq!(calls, 2);
    for tag in 2..10 {
        let shown = submit(tag);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].tag, tag);
    }
    assert_eq!(model.calls.lock().unwrap().len(), calls, "nothing ran");
    assert_eq!(
        stream.counters(),
        Counters {
            processed: 1,
            skipped: 9
        }
    );
}

/// With gaps between the slots every frame still comes out once, in order, right.
#[test]
fn frames_around_skips_come_out_right_and_in_order() {
    for f in 1..=3 {
        let (mut stream, _) = stream(still(2), f, &[0.3, -0.7]);
        // Opposite signs never resemble each other; equal values always do.
        let inputs: Vec<f32> = (0..24)
            .map(|i| if i / 5 % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let mut shown = Vec::new();
        for (tag, z) in inputs.iter().enumerate() {
            shown.extend(values(stream.submit(picture(*z), tag).unwrap()));
        }
        shown.extend(values(stream.drain().unwrap()));
        let alone = |z: f32| {
            let (mut stream, _) = self::stream(plain(&[32, 45]), 1, &[0.3, -0.7]);
            stream.submit(picture(z), 0).unwrap();
            values(stream.drain().unwrap())[0].1
        };
        let (up, down) = (alone(1.0), alone(-1.0));
        for (frame, (tag, value)) in shown.iter().enumerate() {
            assert_eq!(*tag, frame, "f={f}");
            let expected = if inputs[frame] > 0.0 { up } else { down };
            // A group that mixes both resembles a uniform one only in part; single frames are exact.
            if f == 1 {
                assert!((value - expected).abs() < 1e-5, "frame {frame}");
            }
        }
        assert_eq!(shown.len(), 24, "f={f}");
    }
}

#[test]
fn reset_forgets_frames_but_not_settings() {
    let (mut stream, _) = stream(plain(&[22, 32, 45]), 2, &[0.3, -0.7, 0.5]);
    for tag in 0..5 {
        stream.submit(picture(9.0), tag).unwrap();
    }
    stream.reset();
    assert!(stream.drain().unwrap().is_empty());
    assert_close(&run(&mut stream), &WITH_NOISE[1].2[0], "after a reset");
}

#[test]
fn sizes_the_model_cannot_do_are_refused() {
    let limits = Limits {
        multiple: 64,
        ..LIMITS
    };
    assert!(limits.check_size(128, 64).is_ok());
    for (size, property) in [((100, 64), "width"), ((64, 0), "height")] {
        let error = limits.check_size(size.0, size.1).unwrap_err().to_string();
        assert!(error.contains(property) && error.contains("64"), "{error}");
    }
    let fixed = Limits {
        fixed_size: Some((512, 512)),
        ..LIMITS
    };
    let error = fixed.check_size(512, 256).unwrap_err().to_string();
    assert!(
        error.contains("height") && error.contains("512x512"),
        "{error}"
    );
}

/// Rows of a call by guidance (arXiv 2312.12491, section 3.2): one a slot; with full guidance two; with onetime-negative
/// one more for the first step.
#[test]
fn calls_have_as_many_rows_as_guidance_wants() {
    for (cfg_type, rows) in [
        (CfgType::None, 3),
        (CfgType::SelfNegative, 3),
        (CfgType::Initialize, 4),
        (CfgType::Full, 6),
    ] {
        let settings = settings(&[10, 20, 30], cfg_type, 1.5, 1.0);
        let calls = settings.calls(2);
        assert_eq!((calls.steps, calls.frames), (3, 2));
        assert_eq!(calls.rows, 2 * rows, "{cfg_type:?}");
    }
}

/// `tools/reference/stream_scalar.py`, "from noise".
#[test]
fn frames_may_start_from_noise_alone() {
    let expected = [3.214155, 2.613133, 3.214155, 2.085758];
    for ((cfg_type, scale, delta), expected) in MODES.into_iter().zip(expected) {
        for f in 1..=2 {
            let settings = Settings {
                mode: Mode::TextToImage,
                similarity: Some(Similarity {
                    threshold: 0.0,
                    max_skip: 10,
                }),
                ..settings(&[0, 25], cfg_type, scale, delta)
            };
            let (mut stream, _) = stream(settings, f, &[0.3, -0.7]);
            // Whatever comes in, and though the filter is on.
            assert_close(&run(&mut stream), &[expected; 4], &format!("{cfg_type:?}"));
            assert_eq!(stream.counters().skipped, 0);
        }
    }
}

/// A live change of what frames start from leaves those under way as they are.
#[test]
fn the_mode_changes_at_a_frame() {
    let mut settings = settings(&[0, 25], CfgType::SelfNegative, 1.2, 0.5);
    let (mut stream, _) = stream(settings.clone(), 1, &[0.3, -0.7]);
    let pictures = run(&mut stream);
    assert!(stream.submit(picture(INPUTS[0]), 0).unwrap().is_empty());
    settings.mode = Mode::TextToImage;
    stream.configure(&settings).unwrap();
    inject(&mut stream, &[0.3, -0.7]);
    let first = values(stream.submit(picture(INPUTS[1]), 1).unwrap());
    assert_close(&first, &[pictures[0].1], "entered as a picture");
    settings.mode = Mode::ImageToImage;
    stream.configure(&settings).unwrap();
    inject(&mut stream, &[0.3, -0.7]);
    let second = values(stream.submit(picture(INPUTS[2]), 2).unwrap());
    assert!((second[0].1 - 3.214155).abs() < 2e-5, "{second:?}");
    let third = values(stream.drain().unwrap());
    assert!((third[0].1 - pictures[2].1).abs() < 2e-5, "{third:?}");
}

/// With `fresh`, frame k enters with what seed + k stands for; with `walk`, every so many frames.
#[test]
fn the_noise_that_frames_enter_with_varies() {
    for mode in [Mode::TextToImage, Mode::ImageToImage] {
        let fixed = |seed| {
            let settings = Settings {
                mode,
                seed,
                ..plain(&[25])
            };
            let model = Arc::new(Scalar::default());
            let mut stream = new(settings, 1, &model);
            values(stream.submit(picture(0.5), 0).unwrap())[0].1
        };
        for (variation, every) in [
            (Variation::Fresh, 1),
            (Variation::Walk { frames: 1 }, 1),
            (Variation::Walk { frames: 3 }, 3),
        ] {
            for f in 1..=2 {
                let settings = Settings {
                    mode,
                    variation,
                    ..plain(&[25])
                };
                let mut stream = new(settings, f, &Arc::new(Scalar::default()));
                let mut shown = Vec::new();
                for tag in 0..8 {
                    shown.extend(values(stream.submit(picture(0.5), tag).unwrap()));
                }
                assert_eq!(shown.len(), 8);
                for (seed, shown) in shown.iter().step_by(every).enumerate() {
                    let expected = fixed(2 + seed as u64);
                    assert!((shown.1 - expected).abs() < 1e-6, "{variation:?} {shown:?}");
                }
            }
        }
    }
}

/// What follows from prompts and steps is computed when they change, not for every frame.
#[test]
fn prompts_and_steps_are_worked_into_the_model_once() {
    let mut settings = settings(&[32, 45], CfgType::SelfNegative, 1.2, 1.0);
    let (mut stream, model) = stream(settings.clone(), 1, &[0.3, -0.7]);
    let take = || std::mem::take(&mut *model.precomputed.lock().unwrap());
    run(&mut stream);
    run(&mut stream);
    assert_eq!(take(), [(vec![99, 359], PROMPT)]);
    // The negative prompt costs nothing until a mode uses it.
    settings.guidance.cfg_type = CfgType::Initialize;
    stream.configure(&settings).unwrap();
    run(&mut stream);
    assert_eq!(take(), [(vec![99, 359], NEGATIVE)]);
    // A prompt that is prepared for the stream before it is put in force costs no frame anything.
    let mut conditioning = Conditioning {
        prompt: Contexts::new(Arc::new(text(0.5))),
        negative: (stream.texts.get(stream.texts.newest()).unwrap())
            .negative
            .clone(),
    };
    conditioning.prepare(&*model, &stream.needs()).unwrap();
    assert_eq!(take(), [(vec![99, 359], 0.5)]);
    stream.set_conditioning(conditioning);
    run(&mut stream);
    assert_eq!(take(), []);
    // Frames under way finish by their own steps.
    stream.submit(picture(1.0), 0).unwrap();
    settings.guidance.cfg_type = CfgType::None;
    settings.t_index_list = vec![22, 32];
    stream.configure(&settings).unwrap();
    stream.submit(picture(1.0), 1).unwrap();
    assert_eq!(take(), [(vec![559], 0.5)]);
    settings.t_index_list = vec![32];
    stream.configure(&settings).unwrap();
    run(&mut stream);
    assert_eq!(take(), []);
}

/// As when a controller drives `strength`: each frame enters with other steps, and each step is prepared once.
#[test]
fn a_sweep_prepares_each_timestep_once() {
    let mut settings = plain(&[0, 25]);
    let (mut stream, model) = stream(settings.clone(), 1, &[0.3, -0.7]);
    for (tag, first) in (0..25).chain((0..25).rev()).enumerate() {
        settings.t_index_list = vec![first, first + 25];
        stream.configure(&settings).unwrap();
        stream.submit(picture(0.5), tag).unwrap();
    }
    let mut prepared: Vec<u32> = model
        .precomputed
        .lock()
        .unwrap()
        .iter()
        .flat_map(|(timesteps, _)| timesteps.clone())
        .collect();
    prepared.sort_unstable();
    let every: Vec<u32> = (0..50).map(|i| 19 + 20 * i).collect();
    assert_eq!(prepared, every);
}

/// The filter compares pictures; what was drawn from noise has nothing to do with them.
#[test]
fn a_change_to_pictures_is_seen_at_once_with_the_filter_on() {
    let mut settings = Settings {
        mode: Mode::TextToImage,
        similarity: Some(Similarity {
            threshold: 0.0,
            max_skip: 10,
        }),
        ..plain(&[25])
    };
    let (mut stream, _) = stream(settings.clone(), 1, &[0.3]);
    let drawn = values(stream.submit(picture(0.5), 0).unwrap())[0].1;
    settings.mode = Mode::ImageToImage;
    stream.configure(&settings).unwrap();
    inject(&mut stream, &[0.3]);
    let restyled = values(stream.submit(picture(0.5), 1).unwrap())[0].1;
    assert!((drawn - restyled).abs() > 0.01);
}

/// What comes of `share` of a restyled value, clamped as it is shown, and the rest of the value that came in.
fn mixed(share: f32, restyled: f32, input: f32) -> f32 {
    share * restyled.clamp(-1.0, 1.0) + (1.0 - share) * input
}

/// Golden numbers laid over the inputs, with any number of steps and in groups of any size; alone they are as before.
#[test]
fn pictures_are_laid_over_those_that_came_in() {
    for (indices, noise, expected) in WITH_NOISE {
        for f in 1..=5 {
            for share in [0.0, 0.25, 0.5] {
                let settings = Settings {
                    mix: f64::from(share),
                    ..plain(indices)
                };
                let (mut stream, _) = stream(settings, f, noise);
                let pairs = expected[0].iter().zip(INPUTS);
                let expected: Vec<f32> = pairs
                    .map(|(restyled, input)| mixed(share, *restyled, input))
                    .collect();
                let what = format!("{indices:?} f={f} mix={share}");
                assert_close(&run(&mut stream), &expected, &what);
            }
        }
    }
}

/// Each frame is shown with the mix that was in force when it came in, also within a group; and a slot holds on to the
/// pictures that came in only if they are to be seen.
#[test]
fn the_mix_is_that_of_the_frame() {
    const SHARES: [f32; 4] = [1.0, 0.5, 0.0, 1.0];
    let restyled = WITH_NOISE[0].2[0];
    for f in 1..=4 {
        let (mut stream, _) = stream(plain(&[32, 45]), f, &[0.3, -0.7]);
        let mut shown = Vec::new();
        for (tag, (z, share)) in INPUTS.into_iter().zip(SHARES).enumerate() {
            let settings = Settings {
                mix: f64::from(share),
                ..plain(&[32, 45])
            };
            stream.configure(&settings).unwrap();
            inject(&mut stream, &[0.3, -0.7]);
            shown.extend(values(stream.submit(picture(z), tag).unwrap()));
            if let (1, Some(slot)) = (f, stream.slots.front()) {
                assert_eq!(slot.under.is_some(), share < 1.0, "frame {tag}");
            }
        }
        shown.extend(values(stream.drain().unwrap()));
        let expected: Vec<f32> = (0..4)
            .map(|i| mixed(SHARES[i], restyled[i], INPUTS[i]))
            .collect();
        assert_close(&shown, &expected, &format!("f={f}"));
    }
}

/// Frames that start from noise are laid over the picture that came in too; skipped ones show what they resemble as it
/// was shown.
#[test]
fn noise_and_skipped_frames_are_mixed_too() {
    let drawn = Settings {
        mode: Mode::TextToImage,
        mix: 0.5,
        ..plain(&[0, 25])
    };
    let (mut stream, _) = stream(drawn, 1, &[0.3, -0.7]);
    // The golden number, 3.2, is shown as 1.
    let expected = INPUTS.map(|input| mixed(0.5, 3.214155, input));
    assert_close(&run(&mut stream), &expected, "from noise");

    let settings = Settings {
        mix: 0.5,
        ..still(10)
    };
    let (mut stream, _) = self::stream(settings.clone(), 1, &[0.3, -0.7]);
    let mut shown = values(stream.submit(picture(1.0), 0).unwrap());
    let changed = Settings {
        mix: 1.0,
        ..settings
    };
    stream.configure(&changed).unwrap();
    inject(&mut stream, &[0.3, -0.7]);
    for tag in 1..4 {
        shown.extend(values(stream.submit(picture(1.0), tag).unwrap()));
    }
    assert_eq!(stream.counters().skipped, 3);
    assert_close(&shown, &[mixed(0.5, 0.434628, 1.0); 4], "skipped");
}

fn conditioning(prompt: f32) -> Conditioning<Scalar> {
    Conditioning {
        prompt: Contexts::new(Arc::new(text(prompt))),
        negative: Contexts::new(Arc::new(text(NEGATIVE))),
    }
}

/// A prompt is part of a frame, like its steps: the picture of a frame that came in before a change shows nothing of it.
#[test]
fn each_frame_goes_by_the_prompt_it_came_in_with() {
    let indices = &[0, 16, 32, 45][..];
    let alone = |prompt| {
        let model = Arc::new(Scalar::default());
        let mut stream = new(plain(indices), 1, &model);
        stream.set_conditioning(conditioning(prompt));
        run(&mut stream)
    };
    let prompts = [0.5, 0.7, -0.3, 0.1];
    let model = Arc::new(Scalar::default());
    let mut stream = new(plain(indices), 1, &model);
    let mut shown = Vec::new();
    for (tag, (z, prompt)) in INPUTS.into_iter().zip(prompts).enumerate() {
        stream.set_conditioning(conditioning(prompt));
        shown.extend(values(stream.submit(picture(z), tag).unwrap()));
        assert_eq!(stream.texts.all().count(), tag + 1);
    }
    shown.extend(values(stream.drain().unwrap()));
    assert_eq!(shown.len(), INPUTS.len());
    for (k, prompt) in prompts.into_iter().enumerate() {
        let (tag, value) = shown[k];
        let expected = alone(prompt)[k].1;
        assert!(
            tag == k && (value - expected).abs() < 1e-6,
            "{k}: {value}, not {expected}"
        );
    }
    // Nothing is kept of prompts that no frame goes by.
    assert_eq!(stream.texts.all().count(), 1);
    // One text is worked into the model once, for all steps.
    let precomputed = model.precomputed.lock().unwrap();
    let texts: Vec<f32> = precomputed.iter().map(|(_, text)| *text).collect();
    assert_eq!(texts, prompts);
}

#[test]
fn a_new_prompt_is_seen_at_once_with_the_filter_on() {
    let (mut stream, _) = stream(still(10), 1, &[0.3]);
    for tag in 0..3 {
        stream.submit(picture(0.5), tag).unwrap();
    }
    let skipped = stream.counters().skipped;
    assert!(skipped > 0);
    stream.set_conditioning(conditioning(0.9));
    stream.submit(picture(0.5), 3).unwrap();
    assert_eq!(stream.counters().skipped, skipped);
}
