//! What the tests of the element share: the parity model, a rig with the element between two pads, pictures, and
//! GStreamer's command-line tools.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once};

use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFormat, VideoFrameRef, VideoInfo, VideoMeta};
use gststreamdiffusion::engine::shared;

/// How long a test waits for what must happen. Only a failing test waits that long.
pub const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(60);

/// Milliseconds between the frames of a test.
pub const FRAME_MS: u64 = 40;

/// A property and its value as text.
pub type Setting<'a> = (&'a str, &'a str);

/// Settings under which frame k comes out right after frame k + 1.
pub const TWO_STEPS: &[Setting] = &[("t-index-list", "32,45")];

/// Registers the plugin in this process.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gststreamdiffusion::plugin_register_static().unwrap();
    });
}

/// A file or folder of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The model folder that the tests run.
pub fn parity() -> PathBuf {
    data("parity/model")
}

/// The element with the parity model and these properties.
pub fn make(settings: &[Setting]) -> gst::Element {
    init();
    let element = gst::ElementFactory::make("streamdiffusion")
        .property("model", parity().to_str())
        // What is expected was made on the CPU.
        .property_from_str("backend", "onnxruntime-cpu")
        .build()
        .unwrap();
    set(&element, settings);
    element
}

/// Keeps the parity model loaded from now on, so that not every element of a test program loads it again.
pub fn keep_model() {
    static MODEL: LazyLock<Arc<shared::Loaded>> = LazyLock::new(|| {
        init();
        shared::load(&parity()).unwrap()
    });
    LazyLock::force(&MODEL);
}

/// Sets properties.
pub fn set(element: &gst::Element, settings: &[Setting]) {
    for (name, value) in settings {
        element.set_property_from_str(name, value);
    }
}

/// Settings put together.
pub fn join<'a>(a: &[Setting<'a>], b: &[Setting<'a>]) -> Vec<Setting<'a>> {
    [a, b].concat()
}

/// A number of `stats`.
pub fn stat(element: &gst::Element, name: &str) -> u64 {
    let stats = element.property::<gst::Structure>("stats");
    stats.get(name).unwrap()
}

/// The time of frame `k`.
pub fn time(k: u64) -> gst::ClockTime {
    gst::ClockTime::from_mseconds(k * FRAME_MS)
}

/// Caps of raw video at the frame rate of the tests.
pub fn caps(format: &str, width: u32, height: u32) -> gst::Caps {
    init();
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", width as i32)
        .field("height", height as i32)
        .field("framerate", gst::Fraction::new(1000 / FRAME_MS as i32, 1))
        .build()
}

/// 64x64 RGB, the parity model's favourite.
pub fn rgb() -> gst::Caps {
    caps("RGB", 64, 64)
}

/// The layout of frames of these caps.
pub fn info(caps: &gst::Caps) -> VideoInfo {
    VideoInfo::from_caps(caps).unwrap()
}

/// Frame `k` of a moving picture: 64x64 tight RGB.
pub fn picture(k: u64) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(64 * 64 * 3);
    for y in 0..64u64 {
        for x in 0..64 {
            let box_ = (x + 64 - 7 * k % 64) % 64 < 24 && (y + 11 * k) % 64 < 32;
            let level = if box_ { 90 } else { 0 };
            rgb.extend([
                (level + x * 2) as u8,
                (level + y * 2) as u8,
                (160 + k * 13 % 90 - level) as u8,
            ]);
        }
    }
    rgb
}

/// A buffer with the time of frame `k`.
pub fn buffer(data: Vec<u8>, k: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(data);
    let stamped = buffer.make_mut();
    stamped.set_pts(time(k));
    stamped.set_duration(time(1));
    buffer
}

/// Frame `k` of [`picture`], as a buffer.
pub fn frame(k: u64) -> gst::Buffer {
    buffer(picture(k), k)
}

/// Frame `k` with any caps: bytes that say nothing, but differ from frame to frame.
pub fn noise(caps: &gst::Caps, k: u64) -> gst::Buffer {
    let size = info(caps).size() as u64;
    buffer((0..size).map(|i| (i / 7 * 3 + k * 31) as u8).collect(), k)
}

/// The frame with gaps between rows and around planes, as hardware lays them out: `gap` is asked for each plane's, in bytes.
pub fn spread(
    tight: &gst::Buffer,
    caps: &gst::Caps,
    mut gap: impl FnMut() -> usize,
) -> gst::Buffer {
    let info = info(caps);
    let map = tight.map_readable().unwrap();
    let mut data = Vec::new();
    let (mut offsets, mut strides) = (Vec::new(), Vec::new());
    let planes = info.n_planes() as usize;
    for plane in 0..planes {
        let gap = gap();
        let end = info.offset().get(plane + 1).filter(|_| plane + 1 < planes);
        let rows = &map[info.offset()[plane]..end.copied().unwrap_or(info.size())];
        let stride = info.stride()[plane] as usize;
        data.extend(vec![0xa5; gap]);
        offsets.push(data.len());
        strides.push((stride + gap) as i32);
        for row in rows.chunks(stride) {
            data.extend(row);
            data.extend(vec![0x5a; gap]);
        }
        data.extend(vec![0xa5; gap]);
    }
    let mut buffer = gst::Buffer::from_mut_slice(data);
    let writable = buffer.make_mut();
    writable.set_pts(tight.pts());
    VideoMeta::add_full(
        writable,
        gst_video::VideoFrameFlags::empty(),
        info.format(),
        info.width(),
        info.height(),
        &offsets,
        &strides,
    )
    .unwrap();
    buffer
}

/// The rows of all planes of a frame, without what pads them.
pub fn pixels(buffer: &gst::BufferRef, caps: &gst::Caps) -> Vec<u8> {
    let info = info(caps);
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let mut pixels = Vec::new();
    for plane in 0..info.n_planes() {
        let component = (0..info.n_components())
            .find(|c| info.format_info().plane()[*c as usize] == plane)
            .unwrap();
        let stride = frame.plane_stride()[plane as usize] as usize;
        let rows = frame.comp_height(component) as usize;
        let row = match info.format() {
            // Two pixels in four bytes.
            VideoFormat::Yuy2 | VideoFormat::Uyvy | VideoFormat::Yvyu => {
                info.width().div_ceil(2) as usize * 4
            }
            _ => frame.comp_width(component) as usize * frame.comp_pstride(component) as usize,
        };
        let data = frame.plane_data(plane).unwrap();
        for y in 0..rows {
            pixels.extend(&data[y * stride..][..row]);
        }
    }
    pixels
}

/// The largest difference of two pictures.
#[track_caller]
pub fn difference(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// The mean difference between two pictures.
pub fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: u64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.len() as f64
}

/// Two pictures must be the same, but for rounding.
#[track_caller]
pub fn same(a: &[u8], b: &[u8], what: &str) {
    let difference = difference(a, b);
    assert!(difference <= 1, "{what}: differs by {difference}");
}

/// Something that left the element.
#[derive(Debug, Clone)]
pub enum Item {
    Frame(gst::Buffer),
    Event(gst::Event),
}

/// The neighbours of the element in a rig.
#[derive(Default)]
pub struct Neighbours {
    /// What downstream takes; anything if unset.
    pub takes: Option<gst::Caps>,
    /// The latency upstream reports, if it is live.
    pub latency: Option<gst::ClockTime>,
    /// How downstream answers an allocation query.
    pub allocation: Option<fn(&mut gst::query::Allocation)>,
}

/// The element between two pads of the test, which sees all that leaves it, in order. Everything happens on the thread
/// that pushes.
pub struct Rig {
    pub element: gst::Element,
    pub src: gst::Pad,
    pub sink: gst::Pad,
    pub bus: gst::Bus,
    log: Arc<Mutex<Vec<Item>>>,
}

impl Rig {
    /// A rig that is playing, with caps and a segment.
    pub fn playing(settings: &[Setting], caps: &gst::Caps) -> Self {
        keep_model();
        let rig = Self::new(settings, Neighbours::default());
        rig.play(caps);
        rig
    }

    /// A rig at rest.
    pub fn new(settings: &[Setting], neighbours: Neighbours) -> Self {
        Self::with(make(settings), neighbours)
    }

    /// A rig at rest with this element.
    pub fn with(element: gst::Element, neighbours: Neighbours) -> Self {
        let Neighbours {
            takes,
            latency,
            allocation,
        } = neighbours;
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Latency(query) => {
                    query.set(latency.is_some(), latency.unwrap_or_default(), latency);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let log = Arc::new(Mutex::new(Vec::new()));
        let any = takes.unwrap_or_else(gst::Caps::new_any);
        let template = gst::PadTemplate::new(
            "sink",
            gst::PadDirection::Sink,
            gst::PadPresence::Always,
            &any,
        )
        .unwrap();
        let sink = gst::Pad::builder_from_template(&template)
            .chain_function({
                let log = log.clone();
                move |_, _, buffer| {
                    log.lock().unwrap().push(Item::Frame(buffer));
                    Ok(gst::FlowSuccess::Ok)
                }
            })
            .event_function({
                let log = log.clone();
                move |_, _, event| {
                    log.lock().unwrap().push(Item::Event(event));
                    true
                }
            })
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Allocation(query) if allocation.is_some() => {
                    allocation.unwrap()(query);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        element.static_pad("src").unwrap().link(&sink).unwrap();
        Self {
            element,
            src,
            sink,
            bus,
            log,
        }
    }

    /// Starts it, with these caps.
    pub fn play(&self, caps: &gst::Caps) {
        self.sink.set_active(true).unwrap();
        self.element.set_state(gst::State::Playing).unwrap();
        self.src.set_active(true).unwrap();
        assert!(self.event(gst::event::StreamStart::new("test")));
        assert!(self.caps(caps), "{caps}");
        assert!(self.segment());
    }

    /// Stops it; it can be played again.
    pub fn stop(&self) {
        self.src.set_active(false).unwrap();
        self.element.set_state(gst::State::Null).unwrap();
        self.sink.set_active(false).unwrap();
    }

    pub fn caps(&self, caps: &gst::Caps) -> bool {
        self.event(gst::event::Caps::new(caps))
    }

    /// The segment of all time from 0 on.
    pub fn segment(&self) -> bool {
        self.event(gst::event::Segment::new(&gst::FormattedSegment::<
            gst::ClockTime,
        >::new()))
    }

    pub fn event(&self, event: gst::Event) -> bool {
        self.src.push_event(event)
    }

    /// Pushes a buffer, which must go well.
    #[track_caller]
    pub fn push(&self, buffer: gst::Buffer) {
        if let Err(flow) = self.src.push(buffer) {
            let told = |message: &gst::Message| format!("{:?}", message.view());
            let told: Vec<_> = self.errors().iter().map(told).collect();
            panic!("{flow:?}: {told:?}");
        }
    }

    /// Pushes frames of [`picture`].
    #[track_caller]
    pub fn push_frames(&self, frames: std::ops::Range<u64>) {
        for k in frames {
            self.push(frame(k));
        }
    }

    /// Ends the stream, so that all frames come out.
    #[track_caller]
    pub fn end(&self) {
        assert!(self.event(gst::event::Eos::new()));
    }

    /// All that left since the last call.
    pub fn take(&self) -> Vec<Item> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The frames that left since the last call.
    pub fn frames(&self) -> Vec<gst::Buffer> {
        let frame = |item| match item {
            Item::Frame(buffer) => Some(buffer),
            Item::Event(_) => None,
        };
        self.take().into_iter().filter_map(frame).collect()
    }

    /// The pictures of the frames that left since the last call, with the output caps in force now.
    pub fn pictures(&self) -> Vec<Vec<u8>> {
        let caps = self.output_caps();
        self.frames().iter().map(|b| pixels(b, &caps)).collect()
    }

    /// All that left since the last call: frames by their number (from their time), events by their type.
    pub fn names(&self) -> Vec<String> {
        let name = |item: &Item| match item {
            Item::Frame(buffer) => buffer
                .pts()
                .map_or("no time".into(), |t| (t.mseconds() / FRAME_MS).to_string()),
            Item::Event(event) => event.type_().name().to_string(),
        };
        self.take().iter().map(name).collect()
    }

    pub fn output_caps(&self) -> gst::Caps {
        self.sink.current_caps().unwrap()
    }

    /// The messages of these types so far.
    pub fn messages(&self, types: &[gst::MessageType]) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop_filtered(types)).collect()
    }

    /// The errors and warnings so far.
    pub fn errors(&self) -> Vec<gst::Message> {
        self.messages(&[gst::MessageType::Error, gst::MessageType::Warning])
    }

    /// The next error, which must come.
    #[track_caller]
    pub fn error(&self) -> gst::glib::Error {
        let message = self
            .bus
            .timed_pop_filtered(PATIENCE, &[gst::MessageType::Error])
            .expect("no error");
        match message.view() {
            gst::MessageView::Error(error) => error.error(),
            _ => unreachable!(),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.element.set_state(gst::State::Null);
        self.element.set_bus(None);
    }
}

/// What a fresh element with these properties makes of frames: one picture for each.
#[track_caller]
pub fn restyle(settings: &[Setting], caps: &gst::Caps, frames: Vec<gst::Buffer>) -> Vec<Vec<u8>> {
    let rig = Rig::playing(settings, caps);
    let count = frames.len();
    for frame in frames {
        rig.push(frame);
    }
    rig.end();
    let pictures = rig.pictures();
    assert_eq!(pictures.len(), count);
    pictures
}

/// What a fresh element with these properties makes of frames of [`picture`].
#[track_caller]
pub fn restyled(settings: &[Setting], frames: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    restyle(settings, &rgb(), frames.map(frame).collect())
}

/// The path of a library of this name that the process has open.
#[cfg(target_os = "linux")]
pub fn loaded_library(name: &str) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    paths.find(|path| path.contains(name)).unwrap().to_owned()
}

/// A library that has TensorRT's functions for its version, and this one.
pub fn tensorrt_of_version(path: &Path, major: u32, minor: u32) {
    let functions = [
        ("Major", major),
        ("Minor", minor),
        ("Patch", 0),
        ("Build", 0),
    ];
    let source: String = functions
        .iter()
        .map(|(name, n)| format!("int getInferLib{name}Version(void) {{ return {n}; }}\n"))
        .collect();
    let file = path.with_extension("c");
    fs::write(&file, source).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([path, file.as_path()])
        .status();
    assert!(compiled.unwrap().success());
}

/// Copies a folder and all that is in it, over what is there.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A new folder, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("streamdiffusion-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of the parity model.
    pub fn model() -> Self {
        let folder = Self::new();
        copy(&parity(), &folder.0);
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The plugin as GStreamer loads it. Cargo builds it along with the tests.
pub fn plugin() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let name = format!(
        "{}gststreamdiffusion{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let plugin = program.ancestors().nth(2).unwrap().join(name);
    assert!(plugin.is_file(), "{}", plugin.display());
    plugin
}

/// One of GStreamer's command-line tools, working in `folder`, with this plugin, those named, and no others.
pub fn tool(program: &str, folder: &Folder, plugins: &[&str]) -> Command {
    init();
    let path = folder.file("plugins");
    fs::create_dir_all(&path).unwrap();
    let others = plugins.iter().map(|name| {
        let plugin = gst::Registry::get().find_plugin(name);
        let plugin = plugin.unwrap_or_else(|| panic!("GStreamer has no plugin {name}"));
        plugin.filename().unwrap()
    });
    for plugin in others.chain([plugin()]) {
        let link = path.join(plugin.file_name().unwrap());
        std::os::unix::fs::symlink(plugin, link).unwrap();
    }
    let mut command = Command::new(program);
    command
        .current_dir(folder.path())
        .env("GST_PLUGIN_PATH", &path)
        .env("GST_PLUGIN_SYSTEM_PATH", "")
        .env("GST_REGISTRY", folder.file("registry.bin"));
    command
}

/// Waits for what must come true.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < std::time::Duration::from(PATIENCE),
            "not in time: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
