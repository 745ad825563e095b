//! Which backend runs the model, and what the pads take with it.

mod common;

use common::*;
use gst::prelude::*;

const CUDA: &str = "memory:CUDAMemory";

/// Whether this machine has a GPU, which changes what is right.
fn has_gpu() -> bool {
    #[cfg(feature = "cuda")]
    return gststreamdiffusion::device::cuda::Cuda::count().is_ok_and(|count| count > 0);
    #[cfg(not(feature = "cuda"))]
    return false;
}

fn element(backend: &str) -> gst::Element {
    let element = make(&[]);
    element.set_property_from_str("backend", backend);
    element
}

/// The caps features that a pad takes now, in order.
fn features(element: &gst::Element, pad: &str) -> Vec<String> {
    let caps = element.static_pad(pad).unwrap().query_caps(None);
    let mut features: Vec<_> = caps
        .iter_with_features()
        .map(|(_, features)| features.to_string())
        .collect();
    features.dedup();
    features
}

fn text(element: &gst::Element, field: &str) -> String {
    let stats = element.property::<gst::Structure>("stats");
    stats.get::<String>(field).unwrap()
}

#[test]
fn templates_name_gpu_memory_first() {
    let element = element("auto");
    for pad in ["sink", "src"] {
        let caps = element.pad_template(pad).unwrap().caps().clone();
        let features: Vec<_> = caps
            .iter_with_features()
            .map(|(_, features)| features.contains(CUDA))
            .collect();
        assert_eq!(features, [true, false], "{caps}");
        let formats = |i| {
            let structure = caps.structure(i).unwrap();
            let formats = structure.get::<gst::List>("format").unwrap();
            let names = formats.iter().map(|name| name.get::<String>().unwrap());
            names.collect::<Vec<_>>()
        };
        let (cuda, system) = (formats(0), formats(1));
        assert!(cuda.contains(&"NV12".into()) && cuda.contains(&"RGBA".into()));
        assert!(cuda.iter().all(|format| system.contains(format)), "{caps}");
    }
}

#[test]
fn the_cpu_takes_main_memory_only() {
    let rig = Rig::with(element("onnxruntime-cpu"), Neighbours::default());
    rig.play(&rgb());
    for pad in ["sink", "src"] {
        let found = features(&rig.element, pad);
        assert!(found.iter().all(|f| !f.contains(CUDA)), "{found:?}");
        assert!(!found.is_empty());
    }
    let mut cuda = rgb();
    let cuda_memory = gst::CapsFeatures::new([CUDA]);
    cuda.make_mut().set_features_simple(Some(cuda_memory));
    let sink = rig.element.static_pad("sink").unwrap();
    assert!(!sink.query_accept_caps(&cuda));
    assert!(sink.query_accept_caps(&rgb()));
    rig.push_frames(0..2);
    assert_eq!(text(&rig.element, "device"), "CPU");
    assert_eq!(text(&rig.element, "backend-reason"), "asked for");
    assert!(text(&rig.element, "backend").ends_with("(CPU)"));
    assert!(rig.errors().is_empty());
}

#[test]
fn auto_says_what_it_took_and_why() {
    let rig = Rig::with(element("auto"), Neighbours::default());
    rig.play(&rgb());
    rig.push_frames(0..2);
    let (device, reason) = (
        text(&rig.element, "device"),
        text(&rig.element, "backend-reason"),
    );
    if has_gpu() {
        assert!(reason.contains("GPU"), "{reason}");
    } else {
        assert_eq!(device, "CPU");
        assert!(reason.starts_with("no GPU: "), "{reason}");
        for pad in ["sink", "src"] {
            let found = features(&rig.element, pad);
            assert!(found.iter().all(|f| !f.contains(CUDA)), "{found:?}");
        }
    }
    assert!(rig.errors().is_empty());
}

#[test]
fn a_missing_gpu_is_told_where_it_is_asked_for() {
    if has_gpu() {
        let rig = Rig::with(element("onnxruntime-cuda"), Neighbours::default());
        rig.element.set_property("device-id", 1000);
        assert!(rig.element.set_state(gst::State::Paused).is_err());
        let message = rig.error().to_string();
        assert!(message.contains("there is no GPU 1000"), "{message}");
        return;
    }
    let rig = Rig::with(element("onnxruntime-cuda"), Neighbours::default());
    assert!(rig.element.set_state(gst::State::Paused).is_err());
    let error = rig.error();
    assert!(error.matches(gst::LibraryError::Settings), "{error}");
    let message = error.to_string();
    for part in ["property backend", "onnxruntime-cuda", "NVIDIA", "auto"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    // Nothing is left of it.
    rig.element.set_state(gst::State::Null).unwrap();
    rig.element.set_property_from_str("backend", "auto");
    rig.play(&rgb());
    rig.push_frames(0..2);
    assert!(rig.errors().is_empty());
}

#[test]
fn tensorrt_that_is_missing_is_told_where_it_is_asked_for() {
    let rig = Rig::with(element("tensorrt"), Neighbours::default());
    let message = match rig.element.set_state(gst::State::Paused) {
        Err(_) => rig.error().to_string(),
        Ok(_) => {
            assert!(has_gpu());
            return;
        }
    };
    let parts: &[&str] = match (cfg!(feature = "tensorrt"), has_gpu()) {
        (false, _) => &["built without TensorRT", "--features tensorrt"],
        (true, false) => &["NVIDIA", "driver", "auto"],
        // What is missing there, nobody knows here.
        (true, true) => &[],
    };
    for part in [&["property ", "tensorrt"], parts].concat() {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    // It can be had another way.
    rig.element.set_state(gst::State::Null).unwrap();
    rig.element
        .set_property_from_str("backend", "onnxruntime-cpu");
    rig.element.set_property_from_str("build-engines", "auto");
    rig.play(&rgb());
    rig.push_frames(0..2);
    assert_eq!(text(&rig.element, "engines"), "");
    assert!(rig.errors().is_empty());
}

#[test]
fn a_gpus_number_means_nothing_to_the_cpu() {
    let element = element("onnxruntime-cpu");
    element.set_property("device-id", 1000);
    assert_eq!(element.property::<i32>("device-id"), 1000);
    let rig = Rig::with(element, Neighbours::default());
    rig.play(&rgb());
    rig.push_frames(0..2);
    assert!(rig.errors().is_empty());
}

/// What neighbours say of contexts is theirs: without a GPU there is none to give, and odd ones do no harm.
#[test]
fn contexts_are_taken_in_whatever_they_hold() {
    let rig = Rig::with(element("onnxruntime-cpu"), Neighbours::default());
    for kind in ["gst.cuda.context", "x-test"] {
        let mut context = gst::Context::new(kind, true);
        rig.element.set_context(&context);
        let structure = context.make_mut().structure_mut();
        structure.set("gst.cuda.context", gst::Bin::new());
        structure.set("cuda-device-id", 7u32);
        rig.element.set_context(&context);
    }
    rig.play(&rgb());
    for pad in ["sink", "src"] {
        let mut query = gst::query::Context::new("gst.cuda.context");
        assert!(!rig.element.static_pad(pad).unwrap().query(&mut query));
        assert!(query.context().is_none());
    }
    rig.push_frames(0..2);
    assert!(rig.errors().is_empty());
}
