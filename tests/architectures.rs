//! Tiny models of every supported architecture, as our exporter and as Optimum write them, against frames made with
//! diffusers in Python (tools/reference/architectures.py).

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
use std::path::Path;

use common::*;
use serde_json::Value;

/// Settings of a case that are properties of the element.
const PROPERTIES: [&str; 12] = [
    "prompt",
    "negative-prompt",
    "t-index-list",
    "num-inference-steps",
    "guidance-scale",
    "cfg-type",
    "delta",
    "seed",
    "add-noise",
    "mode",
    "scheduler",
    "eta",
];

fn frames(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let array = npyz::NpyFile::new(&file[..]).unwrap();
    let size: u64 = array.shape()[1..].iter().product();
    let data: Vec<u8> = array.into_vec().unwrap();
    data.chunks(size as usize).map(<[u8]>::to_vec).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Runs the cases of `model` with the folder `folder`: pictures must be the same but for rounding.
fn agrees(model: &str, folder: &str, expected_cases: usize) {
    plays(model, folder, expected_cases, "onnxruntime-cpu", same);
}

/// Runs the cases of `model` with the folder `folder` on `backend`; `check` is given what came out, what was to, and what to
/// call it.
fn plays(
    model: &str,
    folder: &str,
    expected_cases: usize,
    backend: &str,
    check: impl Fn(&[u8], &[u8], &str),
) {
    let models = data("models");
    let cases = fs::read(models.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    let cases: Vec<_> = cases.iter().filter(|case| case["model"] == model).collect();
    assert_eq!(cases.len(), expected_cases);
    for case in cases {
        let name = text(&case["name"]);
        let model = models.join(folder).display().to_string();
        let settings: Vec<(&str, String)> = PROPERTIES
            .iter()
            .map(|property| (*property, text(&case[*property])))
            .chain([("model", model), ("width", text(&case["width"]))])
            .chain([("height", text(&case["height"]))])
            .chain([("backend", backend.to_owned())])
            .collect();
        let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, &v[..])).collect();
        let side = |key: &str| case[key].as_u64().unwrap() as u32;
        let rig = Rig::playing(&settings, &caps("RGB", side("width"), side("height")));
        let input = frames(&models.join(format!("{}.in.npy", text(&case["input"]))));
        let count = side("frames") as usize;
        for (k, picture) in input.iter().take(count).enumerate() {
            rig.push(buffer(picture.clone(), k as u64));
        }
        rig.end();
        let (out, caps) = (rig.frames(), rig.output_caps());
        let expected = frames(&models.join(format!("{name}.out.npy")));
        assert_eq!(
            (out.len(), expected.len()),
            (count, count),
            "{folder}: {name}"
        );
        for (k, (found, expected)) in out.iter().zip(&expected).enumerate() {
            let what = format!("{folder}: {name}, frame {k}");
            check(&pixels(found, &caps), expected, &what);
        }
        assert!(rig.errors().is_empty());
        // All of them have cross-attention, so there is something to compute ahead.
        let stats = gst::prelude::ObjectExt::property::<gst::Structure>(&rig.element, "stats");
        let ahead: String = stats.get("precomputed").unwrap();
        assert!(ahead.contains("tensors kept"), "{folder}: {ahead}");
    }
}

#[test]
fn stable_diffusion_1() {
    agrees("sd1", "sd1", 15);
}

#[test]
fn stable_diffusion_1_by_optimum() {
    agrees("sd1", "optimum-sd1", 15);
}

/// v-prediction, a schedule with no signal at its end, a KL autoencoder.
#[test]
fn stable_diffusion_2() {
    agrees("sd2", "sd2", 9);
}

#[test]
fn stable_diffusion_xl() {
    agrees("sdxl", "sdxl", 12);
}

#[test]
fn stable_diffusion_xl_by_optimum() {
    agrees("sdxl", "optimum-sdxl", 12);
}

/// A U-Net that was distilled to imitate guidance, and is told its scale.
#[test]
fn latent_consistency_model() {
    agrees("lcm", "lcm", 7);
}

#[test]
fn latent_consistency_model_by_optimum() {
    agrees("lcm", "optimum-lcm", 7);
}

#[cfg(feature = "cuda")]
twins! {
    [Late]
    half_precision_agrees
}

#[cfg(feature = "cuda")]
fn gpu() {}

/// Tensors between the networks are f16 there; see tests/parity.rs.
#[cfg(feature = "cuda")]
fn half_precision_agrees(_: &()) {
    let cuda = gststreamdiffusion::device::cuda::Cuda::new(0).unwrap();
    let (allowed, on_average) = match cuda.name() {
        "stand-in" => (2, 0.15),
        _ => (16, 1.0),
    };
    for (model, folder, cases) in [
        ("sd1", "sd1", 15),
        ("sd1", "optimum-sd1", 15),
        ("sd2", "sd2", 9),
        ("sdxl", "sdxl", 12),
        ("lcm", "lcm", 7),
    ] {
        plays(
            model,
            folder,
            cases,
            "onnxruntime-cuda",
            |found, expected, what| {
                let (most, mean) = (
                    difference(found, expected),
                    mean_difference(found, expected),
                );
                assert!(
                    most <= allowed && mean <= on_average,
                    "{what}: differs by {most}, {mean:.3} on average"
                );
            },
        );
    }
}

/// XL is told the size of the picture, so what is computed ahead for one size is wrong for another.
#[test]
fn a_new_size_is_told_to_the_model() {
    let model = data("models/sdxl").display().to_string();
    let settings = [
        ("model", &model[..]),
        ("prompt", "a neon cat"),
        ("t-index-list", "22,32"),
        ("cfg-type", "none"),
    ];
    let (small, wide) = (caps("RGB", 64, 64), caps("RGB", 96, 64));
    let rig = Rig::playing(&settings, &small);
    // A prompt that comes later is made ready for the size of that time.
    rig.push(noise(&small, 0));
    set(&rig.element, &[("prompt", "a calm sea")]);
    let settings = join(&settings, &[("prompt", "a calm sea")]);
    let sea = restyle(&settings, &small, vec![noise(&small, 0)]).remove(0);
    let mut count = 1;
    let mut in_force = || {
        rig.push(buffer(pixels(&noise(&small, 0), &small), count));
        count += 1;
        rig.pictures()
            .last()
            .is_some_and(|found| difference(found, &sea) <= 1)
    };
    assert!((0..500).any(|_| in_force()));
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.take();
    assert!(rig.caps(&wide));
    assert!(rig.segment());
    for k in 0..3 {
        rig.push(noise(&wide, k));
    }
    rig.end();
    let (found, caps) = (rig.frames(), rig.output_caps());
    let found: Vec<_> = found.iter().map(|frame| pixels(frame, &caps)).collect();
    let expected = restyle(&settings, &wide, (0..3).map(|k| noise(&wide, k)).collect());
    assert_eq!((found.len(), expected.len()), (3, 3));
    for (found, expected) in found.iter().zip(&expected) {
        same(found, expected, "the new size");
    }
}
