//! An element whose GPU fails under it.

use gst::prelude::*;
use gst_check::Harness;
use gst_video::VideoInfo;

use super::Gpu;
use super::tests::{caps, element, init, paint};
#[cfg(target_os = "linux")]
use crate::computing::{self, When};
use crate::device::video::{Colour, PixelFormat, VideoLayout};
use crate::element::caps::Memory;
#[cfg(target_os = "linux")]
use crate::standin;

/// In a process of its own: a kernel reads a frame where there is nothing. Whether there is another context after that is for
/// the driver to say.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn an_element_whose_gpu_failed_says_so_and_starts_again() {
    const VARIABLE: &str = "STREAMDIFFUSION_TEST_LOSES_GPU";
    if std::env::var_os(VARIABLE).is_none() {
        let name = "element::cuda::lost::an_element_whose_gpu_failed_says_so_and_starts_again";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", name])
            .env(VARIABLE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let again = says_so_and_starts_again(0, || {
        let gpu = Gpu::open(0).unwrap();
        let layout = VideoLayout::dense(PixelFormat::Rgb, 64, 64).unwrap();
        // SAFETY: there is no memory; what the driver makes of that is what is tried.
        let picture =
            unsafe { (gpu.cuda).import_device(0x10, &layout, Colour::FULL_RGB, (64, 64)) };
        gpu.cuda.finish().unwrap_err();
        drop(picture);
        gpu.cuda.release_thread();
    });
    println!("starts again: {again:?}");
}

/// The error comes by itself, as the stand-in has it; and a driver gives another context, or one that is lost too, or none.
#[test]
#[cfg(target_os = "linux")]
fn an_element_whose_gpu_failed_starts_again_on_the_stand_in() {
    let name = "element::cuda::lost::an_element_whose_gpu_failed_starts_again_on_the_stand_in";
    computing::run(name, &[], &[When::Late], || {
        let library = standin::library().unwrap();
        // SAFETY: it is open already.
        let library = unsafe { libloading::Library::new(library) }.unwrap();
        let tell = |name: &std::ffi::CStr, number| {
            // SAFETY: as its source has these.
            unsafe { library.get::<unsafe extern "C" fn(i32)>(name).unwrap()(number) };
        };
        for (never, depth, expected) in [
            (0, 0, "stand-in (GPU 0)"),
            (0, 2, "stand-in (GPU 0)"),
            (1, 0, "CPU"),
            (2, 0, "CPU"),
        ] {
            let devices = says_so_and_starts_again(depth, || {
                tell(c"standin_never_again", never);
                tell(c"standin_fail", 700);
            });
            assert_eq!(devices, [expected; 2], "{never}");
            tell(c"standin_never_again", 0);
        }
    });
}

/// An element plays, `lose` makes its GPU fail, and the element says so, stops, and starts again: on the GPU where the driver
/// gives another context, else on the CPU with a warning. Gives the devices that it then runs on. While frames overlap, they
/// are compared too.
fn says_so_and_starts_again(depth: u32, lose: impl FnOnce()) -> Vec<String> {
    init();
    // As many as it takes for one to come out.
    let first = 3 + u64::from(depth);
    let caps = caps("RGB", (64, 64), Memory::System);
    let info = VideoInfo::from_caps(&caps).unwrap();
    let frame = |k| {
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        paint(buffer.get_mut().unwrap(), &info, k);
        buffer
    };
    // Messages on it refer to the element that has it.
    let stop = |element: &gst::Element| {
        element.set_state(gst::State::Null).unwrap();
        element.set_bus(None);
    };
    // The messages of these kinds since the last call.
    let said = |bus: &gst::Bus, kind| -> Vec<String> {
        let next = || bus.pop_filtered(&[kind]);
        let text = |message: gst::Message| match message.view() {
            gst::MessageView::Error(error) => error.error().to_string(),
            gst::MessageView::Warning(warning) => warning.error().to_string(),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(next).map(text).collect()
    };
    let play = |element: &gst::Element| {
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
        harness.set_sink_caps(caps.clone());
        harness.set_src_caps(caps.clone());
        harness.play();
        (harness, bus)
    };
    let use_of = |element: &gst::Element, name: &str| {
        let stats = element.property::<gst::Structure>("stats");
        stats.get::<String>(name).unwrap()
    };
    let auto = element("auto");
    auto.set_property("pipeline-depth", depth);
    auto.set_property("similarity-filter", depth > 0);
    auto.set_property("ssf-threshold", 1.0f64);
    let (mut harness, bus) = play(&auto);
    for k in 0..first {
        harness.push(frame(k)).unwrap();
    }
    harness.pull().unwrap();
    assert_ne!(use_of(&auto, "device"), "CPU");
    // The thread that makes prompts ready has something on the GPU by now, and is busy with it when it happens.
    auto.set_property("prompt", "a frozen lake");
    let waiting = (first..10_000).take_while(|_| use_of(&auto, "prompt") != "a frozen lake");
    for k in waiting {
        harness.push(frame(k)).unwrap();
    }
    assert_eq!(use_of(&auto, "prompt"), "a frozen lake");
    lose();
    auto.set_property("prompt", "a burning tree");
    // It does not go on elsewhere unasked: what was agreed on with its neighbours, and its delay, would not hold.
    // Frames that overlap are waited for later.
    let pushed: Vec<_> = (0..=u64::from(depth))
        .map(|k| harness.push(frame(10_000 + k)))
        .collect();
    assert!(pushed.contains(&Err(gst::FlowError::Error)), "{pushed:?}");
    let errors = said(&bus, gst::MessageType::Error);
    let failures = pushed.iter().filter(|pushed| pushed.is_err()).count();
    assert_eq!(errors.len(), failures, "{errors:?} for {pushed:?}");
    for part in ["ILLEGAL_ADDRESS", "NULL", "the program is started again"] {
        assert!(errors.iter().any(|text| text.contains(part)), "{errors:?}");
    }
    assert_ne!(use_of(&auto, "device"), "CPU");
    stop(&auto);
    drop(harness);

    let mut devices = Vec::new();
    for round in 0..2 {
        let (mut harness, bus) = play(&auto);
        for k in 0..first {
            harness.push(frame(k)).unwrap();
        }
        harness.pull().unwrap();
        let warnings = said(&bus, gst::MessageType::Warning);
        let device = use_of(&auto, "device");
        let reason = use_of(&auto, "backend-reason");
        println!("{round}: on the {device}, {reason}: {warnings:?}");
        assert_eq!(device == "CPU", warnings.len() == 1, "{warnings:?}");
        for warning in warnings {
            assert!(warning.contains("start the program again"), "{warning}");
        }
        assert_eq!(said(&bus, gst::MessageType::Error), [""; 0]);
        stop(&auto);
        devices.push(device);
    }
    // Who asks for it by name gets it or the reason.
    let insisting = element("onnxruntime-cuda");
    let bus = gst::Bus::new();
    insisting.set_bus(Some(&bus));
    if insisting.set_state(gst::State::Paused).is_err() {
        let errors = said(&bus, gst::MessageType::Error);
        let [error] = &errors[..] else {
            panic!("{errors:?}");
        };
        assert!(error.contains("start the program again"), "{error}");
    }
    stop(&insisting);
    devices
}
