//! What OBS Studio's GStreamer filter does: it pushes one frame, waits for one, and takes its memory back.

mod common;

use std::path::Path;
use std::process::Command;

use common::*;
use gst::prelude::*;

const FORMATS: [&str; 9] = [
    "I420", "NV12", "Y42B", "YVYU", "YUY2", "UYVY", "RGBA", "BGRA", "BGRx",
];
const FRAMES: u64 = 6;

/// The filter's pipeline around these settings.
struct Filter {
    pipeline: gst::Pipeline,
    src: gst_app::AppSrc,
    sink: gst_app::AppSink,
    caps: gst::Caps,
}

impl Filter {
    fn new(format: &str, settings: &str) -> Self {
        keep_model();
        let caps: gst::Caps =
            format!("video/x-raw,format={format},width=64,height=48,framerate=0/1")
                .parse()
                .unwrap();
        let line = format!(
            "appsrc name=src format=time caps=\"{caps}\" ! videoconvert ! streamdiffusion model={} {settings} ! \
             videoconvert ! {caps} ! appsink name=sink sync=false",
            parity().display()
        );
        let pipeline = gst::parse::launch(&line)
            .unwrap()
            .downcast::<gst::Pipeline>()
            .unwrap();
        let by_name = |name| pipeline.by_name(name).unwrap();
        let src = by_name("src").downcast().unwrap();
        let sink = by_name("sink").downcast().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        Self {
            pipeline,
            src,
            sink,
            caps,
        }
    }

    /// Pushes one, pulls one.
    fn pass(&self, buffer: gst::Buffer) -> gst::Sample {
        let time = buffer.pts();
        self.src.push_buffer(buffer).unwrap();
        let sample = self.sink.try_pull_sample(PATIENCE);
        let sample = sample.unwrap_or_else(|| panic!("no frame: {:?}", self.error()));
        assert_eq!(sample.buffer().unwrap().pts(), time);
        assert_eq!(sample.buffer().unwrap().size(), info(&self.caps).size());
        let caps = sample.caps().unwrap();
        assert!(caps.can_intersect(&self.caps), "{caps:?}");
        sample
    }

    fn error(&self) -> Option<gst::Message> {
        let bus = self.pipeline.bus().unwrap();
        bus.pop_filtered(&[gst::MessageType::Error])
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// The bytes of a frame as they lie in memory, which is how OBS copies them.
fn bytes(sample: &gst::Sample) -> Vec<u8> {
    let map = sample.buffer().unwrap().map_readable().unwrap();
    map.to_vec()
}

/// Frame `k` in memory of the application, which GStreamer does not own.
fn wrapped(memory: &mut [u8], k: u64) -> gst::Buffer {
    // SAFETY: `memory` outlives its use by the pipeline; that nothing reads it afterwards is what the test is about, and
    // it stays allocated until the pipeline is gone.
    let mut buffer: gst::Buffer = unsafe {
        gst::glib::translate::from_glib_full(gst::ffi::gst_buffer_new_wrapped_full(
            gst::ffi::GST_MEMORY_FLAG_READONLY,
            memory.as_mut_ptr().cast(),
            memory.len(),
            0,
            memory.len(),
            std::ptr::null_mut(),
            None,
        ))
    };
    buffer.make_mut().set_pts(time(k));
    buffer
}

#[test]
fn one_frame_in_is_one_frame_out_in_every_format() {
    for format in FORMATS {
        for steps in ["35", "0,16,32,45"] {
            let settings = format!("timing=immediate t-index-list={steps}");
            let filter = Filter::new(format, &settings);
            let expected: Vec<_> = (0..FRAMES)
                .map(|k| bytes(&filter.pass(noise(&filter.caps, k))))
                .collect();
            assert_ne!(expected[0], expected[FRAMES as usize - 1], "{format}");

            // The same with memory that is spoilt as soon as the frame is back.
            let filter = Filter::new(format, &settings);
            let mut memory = vec![0; info(&filter.caps).size()];
            for k in 0..FRAMES {
                let frame = noise(&filter.caps, k);
                memory.copy_from_slice(&frame.map_readable().unwrap());
                let sample = filter.pass(wrapped(&mut memory, k));
                memory.fill(0xee);
                let found = bytes(&sample);
                assert_eq!(difference(&found, &expected[k as usize]), 0, "{format}");
            }
            assert!(filter.error().is_none());
            drop(filter);
        }
    }
}

/// The same from a program of its own, in C as the filter is, under AddressSanitizer and UndefinedBehaviorSanitizer: frames
/// become unreadable right after the call, pipelines are destroyed and rebuilt, and nothing may be left over.
#[test]
#[cfg(target_os = "linux")]
fn nothing_of_the_hosts_is_touched_after_the_call() {
    let folder = Folder::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/obs");
    let program = folder.file("filter");
    let libraries = ["gstreamer-app-1.0", "gstreamer-video-1.0"];
    let flags = output(
        Command::new("pkg-config")
            .args(["--cflags", "--libs"])
            .args(libraries),
    );
    let warnings = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g"];
    let sanitizers = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ];
    output(
        Command::new("cc")
            .args(warnings)
            .args(sanitizers)
            .arg(sources.join("filter.c"))
            .arg("-o")
            .arg(&program)
            .args(flags.split_whitespace()),
    );

    let model = parity();
    let effect = |steps| {
        let model = model.display();
        format!(
            "streamdiffusion model={model} backend=onnxruntime-cpu timing=immediate t-index-list={steps}"
        )
    };
    let plugins = ["coreelements", "app", "videoconvertscale", "coretracers"];
    let mut command = tool(program.to_str().unwrap(), &folder, &plugins);
    let suppressions = sources.join("leaks.txt");
    command
        .args([effect("32,45"), effect("16,40")])
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .env(
            "LSAN_OPTIONS",
            format!(
                "suppressions={}:print_suppressions=0",
                suppressions.display()
            ),
        )
        // What GStreamer itself counts: it lists what is alive in the end.
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1");
    let said = output(&mut command);
    assert!(said.contains("all is well"), "{said}");
    // Else the tracer was not there, and its silence says nothing.
    assert!(said.contains("object-alive.class"), "{said}");
    let alive: Vec<_> = said
        .lines()
        .filter(|line| line.contains("object-alive, type-name=(string)") && !line.contains("%s"))
        .collect();
    assert!(alive.is_empty(), "{alive:#?}");
}

/// What a command that must succeed says.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    said
}
