//! The story of each frame, in the log at level 6: in, compared, encoded, stepped, decoded, out.
//!
//! A frame is named by its ticket from the moment that it comes in; the first and the last line say its time too.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use parking_lot::Mutex;

use super::CAT;
use super::imp::StreamDiffusion;
use super::worker::Teller;
use crate::stream::{Happening, Listener, Stepped};

/// Frames under way that are remembered: more than any stream holds.
const KEPT: usize = 256;

/// Whether anybody listens.
pub fn wanted() -> bool {
    CAT.above_threshold(gst::DebugLevel::Log)
}

/// Frames that came in and have not left yet. Empty while nobody listens.
#[derive(Default)]
pub struct Story(Mutex<VecDeque<Frame>>);

struct Frame {
    pts: Option<gst::ClockTime>,
    ticket: u64,
    came: Instant,
}

impl Story {
    /// A frame came in.
    pub fn came(&self, element: &StreamDiffusion, ticket: u64, buffer: &gst::BufferRef) {
        if !wanted() {
            return;
        }
        let caps = element.obj().sink_pad().current_caps();
        let caps = caps.map_or("no caps".into(), |caps| described(&caps));
        let pts = buffer.pts();
        gst::log!(
            CAT,
            imp = element,
            "Frame {ticket}: in, pts {}, {caps}",
            pts.display()
        );
        let mut frames = self.0.lock();
        if frames.len() == KEPT {
            frames.pop_front();
        }
        frames.push_back(Frame {
            pts,
            ticket,
            came: Instant::now(),
        });
    }

    /// Frames under way are forgotten.
    pub fn forget(&self) {
        self.0.lock().clear();
    }

    /// A frame with this time is about to leave.
    pub fn leaves(&self, element: &StreamDiffusion, pts: Option<gst::ClockTime>) {
        if !wanted() {
            return;
        }
        let frame = {
            let mut frames = self.0.lock();
            let index = frames.iter().position(|frame| frame.pts == pts);
            // Those before it were dropped: frames keep their order.
            index.and_then(|index| frames.drain(..=index).next_back())
        };
        let latency = element.latency.lock().own();
        match frame {
            Some(Frame { ticket, came, .. }) => gst::log!(
                CAT,
                imp = element,
                "Frame {ticket}: out, pts {}, {} after it came in; the latency reported is {latency}",
                pts.display(),
                Took(Some(came.elapsed()))
            ),
            None => gst::log!(CAT, imp = element, "Out, pts {}", pts.display()),
        }
    }
}

/// Size, format and memory, in short.
fn described(caps: &gst::CapsRef) -> String {
    match gst_video::VideoInfo::from_caps(caps) {
        Ok(info) => {
            let memory = caps.features(0).filter(|features| {
                !features.is_equal(gst::CapsFeatures::new_empty().as_ref())
                    && !features.contains(gst::CAPS_FEATURE_MEMORY_SYSTEM_MEMORY)
            });
            let memory = memory.map_or(String::new(), |features| format!(" ({features})"));
            format!(
                "{}x{} {}{memory}",
                info.width(),
                info.height(),
                info.format()
            )
        }
        Err(_) => caps.to_string(),
    }
}

/// What tells `teller` of what happens in a stream.
pub fn listener(teller: Teller) -> Listener<u64> {
    std::sync::Arc::new(move |happening| match happening {
        Happening::Compared {
            frames,
            similarity,
            skipped,
        } => {
            let verdict = if skipped { "skipped" } else { "processed" };
            let frames = Frames(frames);
            teller(format_args!(
                "{frames}: similarity {similarity:.4} to the last one processed, {verdict}"
            ));
        }
        Happening::Encoded { frames, took } => {
            teller(format_args!(
                "{}: encoded in {}",
                Frames(frames),
                Took(took)
            ));
        }
        Happening::Stepped { steps, rows, took } => {
            for step in &steps {
                let Stepped {
                    frames,
                    step,
                    of,
                    timestep,
                } = step;
                teller(format_args!(
                    "{}: step {step} of {of} at timestep {timestep}, in a call of {rows} rows in {}",
                    Frames(frames),
                    Took(took)
                ));
            }
        }
        Happening::Decoded { frames, took } => {
            teller(format_args!(
                "{}: decoded in {}",
                Frames(frames),
                Took(took)
            ));
        }
    })
}

/// Frames by their tickets.
struct Frames<'a>(&'a [u64]);

impl fmt::Display for Frames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "Frame" } else { "Frames" })?;
        for (i, ticket) in self.0.iter().enumerate() {
            write!(f, "{}{ticket}", if i == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

/// A duration in milliseconds, if it is known.
struct Took(Option<Duration>);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(took) => write!(f, "{:.2} ms", took.as_secs_f64() * 1e3),
            None => f.write_str("unknown time"),
        }
    }
}
