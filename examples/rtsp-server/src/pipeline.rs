//! The pipeline that all clients watch, and what changes in it while they do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::prelude::*;

use crate::options::{Input, Options, Property};

/// Encoders that may be there, the best first. Late clients wait for a key frame: one comes each second.
const ENCODERS: [(&str, &str); 2] = [
    (
        "x264enc",
        "tune=zerolatency speed-preset=veryfast key-int-max",
    ),
    ("openh264enc", "bitrate=4000000 gop-size"),
];

/// The pipeline in the notation of gst-launch-1.0. What the user typed is not in it, but set by [`Controls::configure`],
/// so that nothing has to be quoted.
pub fn description(options: &Options) -> Result<String, String> {
    let (encoder, settings) = ENCODERS
        .iter()
        .find(|(name, _)| gst::ElementFactory::find(name).is_some())
        .ok_or("no H.264 encoder: x264enc is in gstreamer1.0-plugins-ugly, openh264enc in -bad")?;
    let (size, fps) = (options.size, options.fps);
    let raw = format!("video/x-raw,width={},height={}", size.width, size.height);
    let source = match &options.input {
        Input::Test => {
            format!("videotestsrc name=source is-live=true pattern=ball ! {raw},framerate={fps}/1")
        }
        Input::Camera(_) => "v4l2src name=source ! decodebin".into(),
        Input::Uri(_) => "uridecodebin name=source caps=video/x-raw".into(),
    };
    // Without a rate of its own (framerate=0/1), as RTSP cameras often say, H.264 has no timing to encode.
    let raw = format!("{raw},framerate={fps}/1,pixel-aspect-ratio=1/1");
    let queue = match &options.input {
        // Every frame of a film, but of anything else the newest, whatever the machine can do.
        Input::Uri(uri) if uri.starts_with("file:") => "queue",
        _ => "queue leaky=downstream max-size-buffers=1",
    };
    let effect = match options.no_restyle {
        true => "identity".into(),
        false => format!("{queue} ! streamdiffusion name=style"),
    };
    Ok(format!(
        "( {source} ! videoconvert ! videoscale add-borders=true ! videorate drop-only=false ! {raw} ! {effect} \
         ! videoconvert ! video/x-raw,format=I420 ! queue ! {encoder} {settings}={fps} \
         ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    ))
}

/// What can be changed while the server runs.
pub struct Controls {
    input: Input,
    properties: Vec<Property>,
    prompt: Mutex<Option<String>>,
    elements: Mutex<Vec<glib::WeakRef<gst::Element>>>,
    /// An element without a stream, that keeps the model loaded while nobody watches: the first client needs not wait for
    /// it, nor the next one after the last has gone.
    keeper: Option<gst::Element>,
}

impl Controls {
    /// Checks the properties, and loads the model.
    pub fn new(options: &Options) -> Result<Arc<Self>, String> {
        let keeper = match options.no_restyle {
            true => None,
            false => Some(
                gst::ElementFactory::make("streamdiffusion")
                    .build()
                    .map_err(|_| "no element streamdiffusion: set GST_PLUGIN_PATH to the folder of libgststreamdiffusion.so")?,
            ),
        };
        let controls = Self {
            input: options.input.clone(),
            properties: options.properties.clone(),
            prompt: Mutex::new(options.prompt.clone()),
            elements: Mutex::default(),
            keeper,
        };
        if let Some(keeper) = &controls.keeper {
            let bus = gst::Bus::new();
            keeper.set_bus(Some(&bus));
            controls.set_up(keeper)?;
            // Paused is when models are loaded.
            keeper.set_state(gst::State::Paused).map_err(|_| {
                let error = bus.pop_filtered(&[gst::MessageType::Error]);
                match error.as_ref().map(|message| message.view()) {
                    Some(gst::MessageView::Error(error)) => error.error().to_string(),
                    _ => "the element does not start".into(),
                }
            })?;
        }
        Ok(Arc::new(controls))
    }

    /// Gives the elements of a new pipeline what the user asked for.
    pub fn configure(&self, pipeline: &gst::Bin) -> Result<(), String> {
        if let Some(source) = pipeline.by_name("source") {
            match &self.input {
                Input::Test => {}
                Input::Camera(device) => source.set_property("device", device),
                Input::Uri(uri) => source.set_property("uri", uri),
            }
        }
        let Some(element) = pipeline.by_name("style") else {
            return Ok(());
        };
        let mut elements = lock(&self.elements);
        elements.retain(|element| element.upgrade().is_some());
        elements.push(element.downgrade());
        drop(elements);
        self.set_up(&element)
    }

    /// A new prompt, from the next frame on.
    pub fn set_prompt(&self, prompt: &str) {
        *lock(&self.prompt) = Some(prompt.into());
        for element in lock(&self.elements)
            .iter()
            .filter_map(glib::WeakRef::upgrade)
        {
            element.set_property("prompt", prompt);
        }
    }

    fn set_up(&self, element: &gst::Element) -> Result<(), String> {
        for Property { name, value } in &self.properties {
            let spec = element
                .find_property(name)
                .ok_or_else(|| format!("streamdiffusion has no property '{name}'"))?;
            let value = glib::Value::deserialize_with_pspec(value, &spec).map_err(|_| {
                format!("property {name}: '{value}' is not a {}", spec.value_type())
            })?;
            if !spec.flags().contains(glib::ParamFlags::WRITABLE) {
                return Err(format!("property {name} cannot be set"));
            }
            element.set_property_from_value(name, &value);
        }
        if let Some(prompt) = &*lock(&self.prompt) {
            element.set_property("prompt", prompt);
        }
        Ok(())
    }
}

impl Drop for Controls {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            let _ = keeper.set_state(gst::State::Null);
            keeper.set_bus(None);
        }
    }
}

/// What is inside stays whole when a thread panics: it is only ever replaced.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
