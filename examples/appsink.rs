// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pictures of a program's own through the element and back: appsrc → streamdiffusion → appsink.
//!
//! Draws a disc that moves, has every picture restyled, changes the prompt half-way, and writes what comes back as PPM
//! files into the folder that is named, if one is.
//!
//! ```sh
//! cargo run --example appsink -- --frames 20 --prompt "night vision" --then "a blueprint" --output pictures
//! ```
//!
//! Set `GST_PLUGIN_PATH` to the folder of `libgststreamdiffusion.so` unless that is installed.

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFormat, VideoFrameRef, VideoInfo};

/// Restyles pictures that the program makes, and takes them back.
#[derive(Parser)]
struct Options {
    /// How many pictures
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    frames: u64,

    /// Width and height of the pictures
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    side: u32,

    /// What the first half shall look like
    #[arg(long, default_value = "oil painting")]
    prompt: String,

    /// What the second half shall look like
    #[arg(long, default_value = "pencil sketch")]
    then: String,

    /// A folder for the restyled pictures
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Pictures per second: what their times say, not how fast they are made.
const RATE: i32 = 25;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("appsink: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    gst::init()?;
    let element = gst::ElementFactory::make("streamdiffusion")
        .property("prompt", &options.prompt)
        .build()
        .map_err(|_| "no element streamdiffusion: set GST_PLUGIN_PATH to the folder of libgststreamdiffusion.so")?;
    let layout = layout(options.side)?;
    let caps = layout.to_caps()?;
    let source = gst_app::AppSrc::builder()
        .caps(&caps)
        .format(gst::Format::Time)
        // Back-pressure: with this many waiting, pushing blocks until the element has taken one. Memory stays bounded,
        // and nothing is dropped.
        .block(true)
        .max_buffers(2)
        .max_bytes(0)
        .build();
    let sink = gst_app::AppSink::builder()
        .caps(&caps)
        // As fast as they come; the sink would else wait for the time of each.
        .sync(false)
        .max_buffers(2)
        .build();
    let pipeline = gst::Pipeline::new();
    pipeline.add_many([source.upcast_ref(), &element, sink.upcast_ref()])?;
    gst::Element::link_many([source.upcast_ref(), &element, sink.upcast_ref()])?;

    // The times of what was pushed and has not come back.
    let waiting = Arc::new(Mutex::new(VecDeque::new()));
    // One thread pushes and this one pulls: a loop that does both would wait for a picture that the element, with
    // several steps, only gives when it has the next ones.
    let pusher = std::thread::spawn({
        let (source, element, waiting) = (source.clone(), element.clone(), waiting.clone());
        let (layout, frames, then) = (layout.clone(), options.frames, options.then.clone());
        move || push(&source, &element, &waiting, &layout, frames, &then)
    });
    let pulled = match pipeline.set_state(gst::State::Playing) {
        Ok(_) => pull(&pipeline, &sink, &waiting, &layout, options),
        Err(_) => Err(failure(&pipeline).unwrap_or_else(|| "the pipeline does not start".into())),
    };
    // Lets the other thread go on if it is pushing still.
    pipeline.set_state(gst::State::Null)?;
    let pushed = pusher.join().map_err(|_| "the pushing thread panicked")?;
    let (pulled, pushed) = (pulled?, pushed?);
    println!("{pushed} pictures went in, {pulled} came back");
    match pushed == pulled {
        true => Ok(()),
        false => Err("some are missing".into()),
    }
}

/// How the pictures lie in memory.
fn layout(side: u32) -> Result<VideoInfo, gst::glib::BoolError> {
    VideoInfo::builder(VideoFormat::Rgb, side, side)
        .fps(gst::Fraction::new(RATE, 1))
        .build()
}

/// When picture `k` is due.
fn time(k: u64) -> gst::ClockTime {
    gst::ClockTime::SECOND
        .mul_div_floor(k, RATE as u64)
        .unwrap_or_default()
}

type Times = Mutex<VecDeque<gst::ClockTime>>;

/// Pushes all pictures, then the end. Returns how many the pipeline took.
fn push(
    source: &gst_app::AppSrc,
    element: &gst::Element,
    waiting: &Times,
    layout: &VideoInfo,
    frames: u64,
    then: &str,
) -> Result<u64, gst::glib::BoolError> {
    for k in 0..frames {
        if k == frames / 2 {
            // From the next picture on that is begun once the prompt is encoded.
            element.set_property("prompt", then);
        }
        let buffer = draw(k, layout)?;
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(time(k));
        if source.push_buffer(buffer).is_err() {
            // It stops or has failed, which the bus tells.
            return Ok(k);
        }
    }
    // Pictures that the element still works on come out with the end.
    let _ = source.end_of_stream();
    Ok(frames)
}

/// Takes pictures until the end. Returns how many came.
fn pull(
    pipeline: &gst::Pipeline,
    sink: &gst_app::AppSink,
    waiting: &Times,
    layout: &VideoInfo,
    options: &Options,
) -> Result<u64, String> {
    let mut count = 0;
    loop {
        let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_mseconds(250)) else {
            match failure(pipeline) {
                Some(what) => return Err(what),
                None if sink.is_eos() => return Ok(count),
                None => continue,
            }
        };
        let buffer = sample.buffer().ok_or("a sample without a picture")?;
        // A picture carries the time of the one it was made of, however many steps lie between.
        let expected = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        if buffer.pts() != expected {
            let found = buffer.pts();
            return Err(format!("a picture of {found:?} came, {expected:?} was due"));
        }
        let rgb = tight(buffer, layout)?;
        let [red, green, blue] = means(&rgb);
        println!(
            "picture {count} at {:.2} s: mean red {red:.0}, green {green:.0}, blue {blue:.0}",
            buffer.pts().unwrap_or_default().useconds() as f64 / 1e6,
        );
        if let Some(folder) = &options.output {
            write(folder, count, options.side, &rgb)
                .map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        count += 1;
    }
}

/// The reason why the pipeline failed, if it did.
fn failure(pipeline: &gst::Pipeline) -> Option<String> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string()),
        _ => None,
    }
}

/// Picture `k`: a disc that crosses a slope of colours.
fn draw(k: u64, layout: &VideoInfo) -> Result<gst::Buffer, gst::glib::BoolError> {
    let mut buffer = gst::Buffer::with_size(layout.size())?;
    let stamped = buffer.make_mut();
    stamped.set_pts(time(k));
    stamped.set_duration(time(1));
    let mut frame = VideoFrameRef::from_buffer_ref_writable(stamped, layout)?;
    let side = i64::from(layout.width());
    let stride = frame.plane_stride()[0] as usize;
    let centre = (k as i64 * side / 16 % side, side / 2);
    for (y, row) in (0..side).zip(frame.plane_data_mut(0)?.chunks_mut(stride)) {
        for (x, pixel) in (0..side).zip(row.chunks_exact_mut(3)) {
            let inside = (x - centre.0).pow(2) + (y - centre.1).pow(2) < (side / 5).pow(2);
            pixel.copy_from_slice(&match inside {
                true => [235, 205, 120],
                false => [
                    (200 - x * 120 / side) as u8,
                    110,
                    (60 + y * 150 / side) as u8,
                ],
            });
        }
    }
    drop(frame);
    Ok(buffer)
}

/// The bytes of a picture without what pads its rows.
fn tight(buffer: &gst::BufferRef, layout: &VideoInfo) -> Result<Vec<u8>, String> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, layout).map_err(text)?;
    let row = layout.width() as usize * 3;
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data(0).map_err(text)?.chunks(stride);
    Ok(rows
        .take(layout.height() as usize)
        .flat_map(|bytes| &bytes[..row])
        .copied()
        .collect())
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Mean of red, green and blue, 0 to 255.
fn means(rgb: &[u8]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for pixel in rgb.chunks_exact(3) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += f64::from(*value);
        }
    }
    sums.map(|sum| sum * 3.0 / rgb.len() as f64)
}

/// Writes picture `k` as a PPM.
fn write(folder: &Path, k: u64, side: u32, rgb: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = std::fs::File::create(folder.join(format!("{k:04}.ppm")))?;
    writeln!(file, "P6 {side} {side} 255")?;
    file.write_all(rgb)
}
