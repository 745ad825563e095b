//! The element between two pads of the program, which gives it frames and takes what comes out.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gststreamdiffusion::StreamDiffusion;
use gststreamdiffusion::model::ModelFolder;

use crate::failure::Failure;
use crate::settings::Setting;

/// Sides of frames for a model that names no size.
const SIDE: usize = 512;

/// An element at work. All happens on the thread that pushes, so a property set between two frames applies from the
/// second on.
pub struct Player {
    element: gst::Element,
    src: gst::Pad,
    sink: gst::Pad,
    bus: gst::Bus,
    samples: Receiver<gst::Sample>,
    started: bool,
}

impl Player {
    /// An element with this model folder (the bundled one if none) and these properties, at rest.
    pub fn new(model: Option<&Path>, settings: &[Setting]) -> Result<Self, Failure> {
        // First: where GStreamer looks for plugins in this process, a plugin of this name that is installed would take the name.
        StreamDiffusion::register_type()
            .map_err(|error| Failure::new(error.message.to_string()))?;
        gst::init().map_err(|error| Failure::new(format!("GStreamer cannot start: {error}")))?;
        // By its type, not by its name: a plugin of this name that is installed may be of another version.
        let element: gst::Element = glib::Object::new::<StreamDiffusion>().upcast();
        if let Some(model) = model {
            element.set_property("model", model);
        }
        for setting in settings {
            setting.apply(&element)?;
        }
        let (sender, samples) = channel();
        let src = gst::Pad::builder(gst::PadDirection::Src).build();
        // RGB, which the model gives: every other format would lose something before an encoder asks for it. A pad
        // without a template would take no other caps than those of the first picture.
        let takes = gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .build();
        let template = gst::PadTemplate::new(
            "sink",
            gst::PadDirection::Sink,
            gst::PadPresence::Always,
            &takes,
        )
        .map_err(|error| Failure::new(error.message.to_string()))?;
        let sink = gst::Pad::builder_from_template(&template)
            .chain_function(move |pad, _, buffer| {
                let caps = pad.current_caps();
                let mut sample = gst::Sample::builder().buffer(&buffer);
                if let Some(caps) = &caps {
                    sample = sample.caps(caps);
                }
                match sender.send(sample.build()) {
                    Ok(()) => Ok(gst::FlowSuccess::Ok),
                    Err(_) => Err(gst::FlowError::Eos),
                }
            })
            .event_function(|_, _, _| true)
            .build();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let linked = element
            .static_pad("sink")
            .is_some_and(|pad| src.link(&pad).is_ok())
            && element
                .static_pad("src")
                .is_some_and(|pad| pad.link(&sink).is_ok());
        if !linked {
            return Err(Failure::new("the element's pads cannot be linked"));
        }
        Ok(Self {
            element,
            src,
            sink,
            bus,
            samples,
            started: false,
        })
    }

    /// The element.
    pub fn element(&self) -> &gst::Element {
        &self.element
    }

    /// The kinds of frames it takes.
    pub fn input_formats(&self) -> Result<gst::Caps, Failure> {
        let template = self.element.pad_template("sink");
        let template = template.ok_or_else(|| Failure::new("the element has no sink pad"))?;
        Ok(template.caps().to_owned())
    }

    /// The model folder it will load.
    pub fn model(&self) -> Result<PathBuf, Failure> {
        match self.element.property::<Option<PathBuf>>("model") {
            Some(model) => Ok(model),
            None => Ok(gststreamdiffusion::bundled_model()?),
        }
    }

    /// Starts it; loading begins.
    pub fn start(&mut self) -> Result<(), Failure> {
        let failed = |_: &dyn std::fmt::Debug| self.failure("the element does not start");
        self.sink.set_active(true).map_err(|e| failed(&e))?;
        self.element
            .set_state(gst::State::Playing)
            .map_err(|e| failed(&e))?;
        self.src.set_active(true).map_err(|e| failed(&e))?;
        self.event(gst::event::StreamStart::new("streamdiffusion"))?;
        self.started = false;
        Ok(())
    }

    /// Waits until its model is loaded.
    pub fn wait_for_model(&self) -> Result<(), Failure> {
        loop {
            if let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error]) {
                return Err(Self::failure_of(&message, ""));
            }
            let stats = self.element.property::<gst::Structure>("stats");
            if stats
                .get::<String>("backend")
                .is_ok_and(|backend| !backend.is_empty())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Says what the next frames are like.
    pub fn set_caps(&mut self, caps: &gst::CapsRef) -> Result<(), Failure> {
        if self.src.current_caps().is_none_or(|now| *now != *caps) {
            self.event(gst::event::Caps::new(&caps.to_owned()))?;
        }
        if !self.started {
            let segment = gst::FormattedSegment::<gst::ClockTime>::new();
            self.event(gst::event::Segment::new(&segment))?;
            self.started = true;
        }
        Ok(())
    }

    /// Has it take a frame; returns when it is done with what that sets off.
    pub fn push(&self, buffer: gst::Buffer) -> Result<(), Failure> {
        self.src
            .push(buffer)
            .map(|_| ())
            .map_err(|flow| self.failure(&format!("the element stopped ({flow:?})")))
    }

    /// Ends the stream: frames under way come out.
    pub fn end(&self) -> Result<(), Failure> {
        self.event(gst::event::Eos::new())
    }

    /// What came out since the last call.
    pub fn take(&self) -> Vec<gst::Sample> {
        self.samples.try_iter().collect()
    }

    /// The warnings since the last call.
    pub fn warnings(&self) -> Vec<String> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Warning]))
            .filter_map(|message| match message.view() {
                gst::MessageView::Warning(warning) => Some(warning.error().message().to_owned()),
                _ => None,
            })
            .collect()
    }

    /// Stops it, with its model kept in memory; it can be started again.
    pub fn stop(&self) {
        let _ = self.src.set_active(false);
        let _ = self.element.set_state(gst::State::Ready);
        let _ = self.sink.set_active(false);
    }

    fn event(&self, event: gst::Event) -> Result<(), Failure> {
        let kind = event.type_().name().to_owned();
        let taken = self.src.push_event(event);
        // An event may set off work that fails, and still be taken.
        match self.bus.pop_filtered(&[gst::MessageType::Error]) {
            Some(message) => Err(Self::failure_of(&message, "")),
            None if taken => Ok(()),
            None => Err(Failure::new(format!(
                "the element does not take the event {kind}"
            ))),
        }
    }

    /// The error that was posted, else one that says `otherwise`.
    fn failure(&self, otherwise: &str) -> Failure {
        match self.bus.pop_filtered(&[gst::MessageType::Error]) {
            Some(message) => Self::failure_of(&message, otherwise),
            None => Failure::new(otherwise),
        }
    }

    fn failure_of(message: &gst::Message, otherwise: &str) -> Failure {
        match message.view() {
            gst::MessageView::Error(error) => Failure::from_message(error),
            _ => Failure::new(otherwise),
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.src.set_active(false);
        let _ = self.element.set_state(gst::State::Null);
        self.element.set_bus(None);
    }
}

/// Width and height of frames that suit the model best.
pub fn own_size(folder: &ModelFolder) -> (u32, u32) {
    let defaults = &folder.manifest().defaults;
    let (width, height) = match (folder.fixed_size(), defaults.width, defaults.height) {
        (Some(fixed), ..) => fixed,
        (None, Some(width), Some(height)) => (width, height),
        _ => {
            let side = defaults.size.unwrap_or(SIDE);
            (side, side)
        }
    };
    (width as u32, height as u32)
}
