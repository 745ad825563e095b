//! The element against what the published Python package makes of the same frames with the same model.

mod common;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "standin/computing.rs"]
mod computing;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod standin;
#[cfg(feature = "cuda")]
#[macro_use]
#[path = "standin/twins.rs"]
mod twins;

use std::fs;

use common::*;

/// A parity fixture. The package emits frame j at call j + n − 1 with n steps; what it emits before frame 0 means nothing.
struct Case {
    name: String,
    settings: Vec<(&'static str, String)>,
    steps: usize,
    width: u32,
    height: u32,
    input: Vec<Vec<u8>>,
    expected: Vec<Vec<u8>>,
}

fn cases() -> Vec<Case> {
    let file = fs::read(data("parity/cases.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&file).unwrap();
    cases
        .iter()
        .map(|case| {
            let text = |key: &str| match &case[key] {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let indices: Vec<_> = case["t_index_list"].as_array().unwrap().clone();
            let list: Vec<_> = indices.iter().map(|i| i.to_string()).collect();
            let mut settings = vec![
                ("t-index-list", list.join(",")),
                ("similarity-filter", "false".into()),
            ];
            for (property, key) in [
                ("prompt", "prompt"),
                ("negative-prompt", "negative_prompt"),
                ("num-inference-steps", "num_inference_steps"),
                ("guidance-scale", "guidance_scale"),
                ("delta", "delta"),
                ("cfg-type", "cfg_type"),
                ("seed", "seed"),
                ("add-noise", "add_noise"),
            ] {
                settings.push((property, text(key)));
            }
            let name = text("name");
            let side = |key: &str| case[key].as_u64().unwrap() as u32;
            Case {
                input: frames(&name, "in"),
                expected: frames(&name, "out"),
                steps: indices.len(),
                width: side("width"),
                height: side("height"),
                settings,
                name,
            }
        })
        .collect()
}

fn frames(name: &str, which: &str) -> Vec<Vec<u8>> {
    let file = fs::read(data(&format!("parity/{name}.{which}.npy"))).unwrap();
    let array = npyz::NpyFile::new(&file[..]).unwrap();
    let size: u64 = array.shape()[1..].iter().product();
    let data: Vec<u8> = array.into_vec().unwrap();
    data.chunks(size as usize).map(<[u8]>::to_vec).collect()
}

/// Pairs of output frames and the reference's for the same input frames, with what to call them.
fn pairs<'a>(
    case: &'a Case,
    found: &'a [Vec<u8>],
) -> impl Iterator<Item = (&'a [u8], &'a [u8], String)> {
    assert_eq!(found.len(), case.input.len(), "{}", case.name);
    let expected = &case.expected[case.steps - 1..];
    assert!(expected.len() >= 5, "{}", case.name);
    let pairs = found.iter().zip(expected).enumerate();
    pairs.map(|(j, (found, expected))| {
        (
            &found[..],
            &expected[..],
            format!("{}, frame {j}", case.name),
        )
    })
}

/// They must be the same but for rounding.
fn agree(case: &Case, found: &[Vec<u8>]) {
    for (found, expected, what) in pairs(case, found) {
        same(found, expected, &what);
    }
}

#[test]
fn the_element_agrees_with_the_reference() {
    let cases = cases();
    assert_eq!(cases.len(), 6);
    for case in &cases {
        let settings: Vec<_> = case.settings.iter().map(|(k, v)| (*k, &v[..])).collect();
        let rig = Rig::playing(&settings, &caps("RGB", case.width, case.height));
        for (k, input) in case.input.iter().enumerate() {
            rig.push(buffer(input.clone(), k as u64));
            let early = (k + 2).saturating_sub(case.steps);
            assert_eq!(stat(&rig.element, "output"), early as u64, "{}", case.name);
        }
        rig.end();
        let out = rig.frames();
        for (k, buffer) in out.iter().enumerate() {
            assert_eq!(buffer.pts(), Some(time(k as u64)), "{}", case.name);
            assert_eq!(buffer.duration(), Some(time(1)), "{}", case.name);
        }
        let caps = rig.output_caps();
        let found: Vec<_> = out.iter().map(|buffer| pixels(buffer, &caps)).collect();
        agree(case, &found);
        assert!(rig.errors().is_empty());
    }
}

#[cfg(feature = "cuda")]
twins! {
    [Late]
    half_precision_agrees_with_the_reference
}

#[cfg(feature = "cuda")]
fn gpu() {}

/// On a GPU tensors between the networks are f16, which has 11 bits where f32 has 24: each step rounds once more. Where the
/// networks themselves are f32, that is all; a GPU multiplies with TF32 besides, which has 11 bits too.
#[cfg(feature = "cuda")]
fn half_precision_agrees_with_the_reference(_: &()) {
    let standing_in = gststreamdiffusion::device::cuda::Cuda::new(0)
        .unwrap()
        .name()
        == "stand-in";
    for case in &cases() {
        let mut settings: Vec<_> = case.settings.iter().map(|(k, v)| (*k, &v[..])).collect();
        settings.push(("backend", "onnxruntime-cuda"));
        let caps = caps("RGB", case.width, case.height);
        let frames = case.input.iter().zip(0..);
        let frames = frames.map(|(input, k)| buffer(input.clone(), k));
        let found = restyle(&settings, &caps, frames.collect());
        let (allowed, on_average) = if standing_in { (1, 0.05) } else { (16, 1.0) };
        for (found, expected, what) in pairs(case, &found) {
            let (most, mean) = (
                difference(found, expected),
                mean_difference(found, expected),
            );
            assert!(
                most <= allowed && mean <= on_average,
                "{what}: differs by {most}, {mean:.3} on average"
            );
        }
    }
}

/// The reference's pictures laid over those that went in, worked out here from the two.
#[test]
fn a_mix_is_that_of_the_reference_and_the_input() {
    let cases = cases();
    for name in ["two-step-none", "four-step-self-wide"] {
        let case = cases.iter().find(|c| c.name == name).unwrap();
        for (mix, timing) in [
            (0.0, "content"),
            (0.5, "content"),
            (0.25, "content"),
            (0.0, "immediate"),
        ] {
            let text = mix.to_string();
            let mut settings: Vec<_> = case.settings.iter().map(|(k, v)| (*k, &v[..])).collect();
            settings.extend([("mix", &text[..]), ("timing", timing)]);
            let rig = Rig::playing(&settings, &caps("RGB", case.width, case.height));
            for (k, input) in case.input.iter().enumerate() {
                rig.push(buffer(input.clone(), k as u64));
            }
            rig.end();
            let found = rig.pictures();
            assert_eq!(found.len(), case.input.len());
            // In immediate timing what comes out is older than what came in, and the first frame fills the stream.
            let late = if timing == "immediate" {
                case.steps - 1
            } else {
                0
            };
            for (k, found) in found.iter().enumerate() {
                let input = &case.input[k.saturating_sub(late)];
                if mix == 0.0 {
                    assert!(found == input, "{name}, frame {k}, {timing}");
                    continue;
                }
                // The package never emits its last frames.
                let Some(restyled) = case.expected.get(k + case.steps - 1) else {
                    continue;
                };
                let pairs = restyled.iter().zip(input);
                let expected: Vec<u8> = pairs
                    .map(|(r, i)| (mix * f64::from(*r) + (1.0 - mix) * f64::from(*i)).round() as u8)
                    .collect();
                same(found, &expected, &format!("{name}, frame {k}, mix {mix}"));
            }
            assert!(rig.errors().is_empty());
        }
    }
}

/// Frames that are scaled for the model and back: without the restyled picture it is only that.
#[test]
fn a_mix_is_made_at_the_processing_size() {
    let caps = caps("RGB", 128, 96);
    let ramp: Vec<u8> = (0..96)
        .flat_map(|y| {
            (0..128).flat_map(move |x| [40 + x as u8, 60 + y as u8, 200 - (x + y) as u8 / 2])
        })
        .collect();
    let made = |mix: &str, size: &str| {
        let settings = [
            ("mix", mix),
            ("width", size),
            ("height", size),
            ("t-index-list", "35"),
        ];
        restyle(&settings, &caps, vec![buffer(ramp.clone(), 0)]).remove(0)
    };
    let dry = made("0", "64");
    // A ramp survives scaling, but for its edges.
    let inside = |x: usize, y: usize| (6..122).contains(&x) && (6..90).contains(&y);
    for (i, (found, input)) in dry.iter().zip(&ramp).enumerate() {
        let (x, y) = (i / 3 % 128, i / 384);
        if inside(x, y) {
            assert!(
                found.abs_diff(*input) <= 3,
                "{x}, {y}: {found}, not {input}"
            );
        }
    }
    let (wet, half) = (made("1", "64"), made("0.5", "64"));
    assert!(difference(&wet, &dry) > 20);
    for ((half, wet), dry) in half.iter().zip(&wet).zip(&dry) {
        let mean = (u16::from(*wet) + u16::from(*dry)) / 2;
        assert!(u16::from(*half).abs_diff(mean) <= 2, "{half}, not {mean}");
    }
}

/// The command line of the documentation.
#[test]
fn gst_launch_agrees_with_the_reference() {
    let cases = cases();
    let case = cases.iter().find(|c| c.name == "two-step-none").unwrap();
    let folder = Folder::new();
    fs::write(folder.file("two-step-none.in.rgb"), case.input.concat()).unwrap();
    let line = format!(
        "gst-launch-1.0 filesrc location=two-step-none.in.rgb ! rawvideoparse format=rgb width=64 height=64 framerate=30/1 ! \
         streamdiffusion model={} prompt=\"a neon cat\" negative-prompt=ink t-index-list=32,45 cfg-type=none seed=42 \
         similarity-filter=false ! video/x-raw,format=RGB ! filesink location=out.rgb",
        parity().display()
    );
    let output = tool("sh", &folder, &["coreelements", "rawparse"])
        .args(["-c", &line])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let found = fs::read(folder.file("out.rgb")).unwrap();
    let found: Vec<_> = found.chunks(64 * 64 * 3).map(<[u8]>::to_vec).collect();
    agree(case, &found);
}
