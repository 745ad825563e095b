//! Pictures from files and to files, by GStreamer's decoders and encoders.

use std::path::{Path, PathBuf};

use gst::prelude::*;

use crate::failure::Failure;

/// Endings of files that are taken for pictures in a folder.
const PICTURES: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];

/// Who writes which files: ending and element.
const ENCODERS: [(&str, &str); 5] = [
    ("png", "pngenc"),
    ("jpg", "jpegenc"),
    ("jpeg", "jpegenc"),
    ("webp", "webpenc"),
    ("bmp", "avenc_bmp"),
];

/// Quality of encoders that have one: hard to tell from the original.
const QUALITY: &str = "95";

/// The most bytes of a picture's file.
const FILE_LIMIT: u64 = 1 << 29;

/// How long GStreamer may take to say something before it is asked whether something went wrong.
const PAUSE: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// The ending of a file's name, in small letters.
pub fn ending(path: &Path) -> String {
    let ending = path.extension().unwrap_or_default();
    ending.to_string_lossy().to_lowercase()
}

/// Whether files with this ending can be written.
pub fn is_writable(ending: &str) -> bool {
    ENCODERS.iter().any(|(known, _)| *known == ending)
}

/// The endings of pictures that can be written.
pub fn writable() -> String {
    ENCODERS.map(|(ending, _)| ending).join(", ")
}

/// The encoder for files with this ending; its absence is an error.
pub fn check_encoder(ending: &str) -> Result<(), Failure> {
    encoder(ending).map(|_| ())
}

/// The pictures in `folder`, sorted by name, and how many other files there are.
pub fn list(folder: &Path) -> Result<(Vec<PathBuf>, usize), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("{} cannot be read: {error}", folder.display()))
    };
    let (mut found, mut others) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !path.is_file() || hidden {
            continue;
        }
        match PICTURES.contains(&ending(&path).as_str()) {
            true => found.push(path),
            false => others += 1,
        }
    }
    found.sort();
    Ok((found, others))
}

/// The picture in the file at `path` (the first one, if there are several) with its caps, as one of `formats`.
pub fn decode(path: &Path, formats: &gst::Caps) -> Result<gst::Sample, Failure> {
    let named = |failure: Failure| {
        let detail = failure.detail().map(str::to_owned);
        Failure::new(format!("{}: {failure}", path.display())).with_detail(detail)
    };
    // Some decoders want a picture in one piece, which filesrc does not give.
    let file = read(path)?;
    let source = gst_app::AppSrc::builder()
        .format(gst::Format::Bytes)
        .build();
    let decoder = make("decodebin")?;
    let converter = make("videoconvert")?;
    // Cameras note which way is up instead of turning the picture.
    let turn = make("videoflip")?;
    turn.set_property_from_str("video-direction", "auto");
    let sink = gst_app::AppSink::builder()
        .caps(formats)
        .sync(false)
        .max_buffers(1)
        .build();
    let pipeline = Running::new(&[
        source.upcast_ref(),
        &decoder,
        &converter,
        &turn,
        sink.upcast_ref(),
    ])?;
    link(&[source.upcast_ref(), &decoder])?;
    link(&[&converter, &turn, sink.upcast_ref()])?;
    decoder.connect_pad_added(move |_, pad| {
        // Anything but pictures has no place to go, nor has a second stream of them.
        if let Some(sink) = converter
            .static_pad("sink")
            .filter(|sink| !sink.is_linked())
        {
            let _ = pad.link(&sink);
        }
    });
    // Reads the note, but GStreamer 1.22 does not choose it by itself.
    if let Some(parser) = gst::ElementFactory::find("jpegparse") {
        parser.set_rank(gst::Rank::PRIMARY + 1);
    }
    pipeline.play().map_err(named)?;
    // Refused only where decoding has failed already, which the bus tells.
    let _ = source.push_buffer(gst::Buffer::from_slice(file));
    let _ = source.end_of_stream();
    loop {
        if let Some(sample) = sink.try_pull_sample(PAUSE) {
            return Ok(sample);
        }
        pipeline.check().map_err(named)?;
        if sink.is_eos() {
            return Err(named(Failure::new("holds no picture")));
        }
    }
}

/// A black picture of this size.
pub fn blank((width, height): (u32, u32)) -> Result<gst::Sample, Failure> {
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", width as i32)
        .field("height", height as i32)
        .field("framerate", gst::Fraction::new(0, 1))
        .build();
    let info = gst_video::VideoInfo::from_caps(&caps)
        .map_err(|error| Failure::new(error.message.to_string()))?;
    let buffer = gst::Buffer::from_mut_slice(vec![0; info.size()]);
    Ok(gst::Sample::builder().buffer(&buffer).caps(&caps).build())
}

/// The bytes of a file that may be a picture.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > FILE_LIMIT => Err(Failure::new(format!(
            "{} is larger than the {FILE_LIMIT} bytes expected of a picture at most",
            path.display()
        ))),
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::new(format!(
            "{} cannot be read: {error}",
            path.display()
        ))),
    }
}

/// The bytes of a file with this ending that holds the picture in `sample`.
pub fn encode(sample: &gst::Sample, ending: &str) -> Result<Vec<u8>, Failure> {
    let (Some(buffer), Some(caps)) = (sample.buffer_owned(), sample.caps()) else {
        return Err(Failure::new("the element gave a frame without a picture"));
    };
    let mut caps = caps.to_owned();
    if let Some(structure) = caps.make_mut().structure_mut(0) {
        // Not every encoder takes the frame rate of stills, 0.
        structure.set("framerate", gst::Fraction::new(1, 1));
    }
    let source = gst_app::AppSrc::builder()
        .caps(&caps)
        .format(gst::Format::Time)
        .build();
    let converter = make("videoconvert")?;
    let encoder = encoder(ending)?;
    let sink = gst_app::AppSink::builder().sync(false).build();
    let parts = [source.upcast_ref(), &converter, &encoder, sink.upcast_ref()];
    let pipeline = Running::new(&parts)?;
    link(&parts)?;
    pipeline.play()?;
    let refused = |flow| Failure::new(format!("the picture was not encoded ({flow:?})"));
    source.push_buffer(buffer).map_err(refused)?;
    source.end_of_stream().map_err(refused)?;
    let mut bytes = Vec::new();
    loop {
        if let Some(sample) = sink.try_pull_sample(PAUSE) {
            let part = sample.buffer().and_then(|b| b.map_readable().ok());
            bytes.extend_from_slice(part.as_deref().unwrap_or_default());
            continue;
        }
        pipeline.check()?;
        if sink.is_eos() {
            return match bytes.is_empty() {
                false => Ok(bytes),
                true => Err(Failure::new(format!("no {ending} came out of its encoder"))),
            };
        }
    }
}

fn encoder(ending: &str) -> Result<gst::Element, Failure> {
    let known = ENCODERS.iter().find(|(known, _)| *known == ending);
    let (_, name) = known.ok_or_else(|| {
        Failure::usage(format!(
            "{ending:?} is not a kind of picture that is written, expected a file that ends in one of {}",
            writable()
        ))
    })?;
    let encoder = make(name)?;
    if encoder.find_property("quality").is_some() {
        encoder.set_property_from_str("quality", QUALITY);
    }
    Ok(encoder)
}

fn make(name: &str) -> Result<gst::Element, Failure> {
    gst::ElementFactory::make(name).build().map_err(|_| {
        Failure::new(format!(
            "GStreamer's element {name} is missing; on Debian and Ubuntu it comes with: apt install {}",
            package(name)
        ))
    })
}

/// The Debian package with an element, or a decoder for a media type.
fn package(name: &str) -> &'static str {
    match name {
        "decodebin" | "videoconvert" => "gstreamer1.0-plugins-base",
        "pngenc" | "jpegenc" | "videoflip" | "image/png" | "image/jpeg" => {
            "gstreamer1.0-plugins-good"
        }
        "webpenc" | "image/webp" => "gstreamer1.0-plugins-bad",
        _ => "gstreamer1.0-libav",
    }
}

fn link(parts: &[&gst::Element]) -> Result<(), Failure> {
    gst::Element::link_many(parts).map_err(|error| Failure::new(error.message.to_string()))
}

/// A pipeline that stops when dropped.
struct Running(gst::Pipeline, gst::Bus);

impl Running {
    fn new(parts: &[&gst::Element]) -> Result<Self, Failure> {
        let pipeline = gst::Pipeline::new();
        let failed = |error: gst::glib::BoolError| Failure::new(error.message.to_string());
        pipeline.add_many(parts).map_err(failed)?;
        let bus = pipeline
            .bus()
            .ok_or_else(|| Failure::new("a pipeline has no bus"))?;
        Ok(Self(pipeline, bus))
    }

    fn play(&self) -> Result<(), Failure> {
        self.0
            .set_state(gst::State::Playing)
            .map(|_| ())
            .or_else(|_| {
                self.check()?;
                Err(Failure::new("GStreamer's pipeline does not start"))
            })
    }

    /// The error that was posted, if one was.
    fn check(&self) -> Result<(), Failure> {
        use gst::MessageType;
        let mut missing = None;
        while let Some(message) = self
            .1
            .pop_filtered(&[MessageType::Error, MessageType::Element])
        {
            match message.view() {
                gst::MessageView::Error(error) => {
                    return Err(missing.unwrap_or_else(|| Failure::from_message(error)));
                }
                gst::MessageView::Element(element) => {
                    missing = element.structure().and_then(missing_plugin).or(missing);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// The failure that GStreamer's message about a missing plugin comes to.
fn missing_plugin(structure: &gst::StructureRef) -> Option<Failure> {
    if structure.name() != "missing-plugin" {
        return None;
    }
    let what = structure.get::<&str>("name").unwrap_or("a decoder");
    let kind = structure
        .get::<gst::Caps>("detail")
        .ok()
        .and_then(|caps| caps.structure(0).map(|s| s.name().to_string()))
        .or_else(|| structure.get::<String>("detail").ok())
        .unwrap_or_default();
    Some(Failure::new(format!(
        "GStreamer has no {what}; on Debian and Ubuntu it comes with: apt install {}",
        package(&kind)
    )))
}
