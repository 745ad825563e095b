//! What the element tells of its own accord: messages on the bus, and lines in the log.
//!
//! Messages of type `PROGRESS` have the code `loading`. Those of type `ELEMENT` are named after the element:
//! `streamdiffusion-model-loaded`, `-prompt-transition`, `-prompt-applied`, `-skipping` and `-resumed`; their times and
//! durations are `guint64` nanoseconds, and a time that is not known is left out. All are posted from the worker's thread,
//! which holds no lock.
//!
//! A prompt is applied with the first frame that shows it and nothing of the one before. Where `prompt-transition` makes that
//! take a while, its beginning is told too. A change amid a transition takes its place, and then only the new one is applied.

use std::sync::Arc;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use parking_lot::Mutex;

use super::preload::Order;
use super::settings::Prompts;
use super::skipping::Change;
use super::venue::Venue;
use super::worker::{Loading, Observer, Stamp, Teller};
use super::{CAT, StreamDiffusion, errors, story};
use crate::error::Error;

/// Posts what the worker tells, as long as the element exists.
pub struct ElementObserver {
    element: glib::WeakRef<StreamDiffusion>,
    /// What was asked for.
    order: Order,
    /// Where it runs, and why.
    place: Mutex<(String, String)>,
}

impl ElementObserver {
    /// For an element that loads the model of `order` and runs it on `device`, chosen for `reason`.
    pub fn new(element: &StreamDiffusion, order: Order, device: String, reason: String) -> Self {
        Self {
            element: element.downgrade(),
            order,
            place: Mutex::new((device, reason)),
        }
    }

    /// Tells how far a task is that the pipeline may wait for: `code` names the task, `text` what is being done.
    fn progress(&self, kind: gst::ProgressType, code: &str, text: &str) {
        let text = &errors::c_text(text);
        if let Some(element) = self.element.upgrade() {
            gst::debug!(CAT, obj = element, "Progress of {code}: {kind:?}, {text}");
            let message = gst::message::Progress::builder(kind, code, text).src(&element);
            post(&element, message.build());
        }
    }

    /// Posts `structure` as a message of the element.
    fn post(&self, structure: gst::Structure) {
        if let Some(element) = self.element.upgrade() {
            gst::info!(CAT, obj = element, "{structure}");
            let message = gst::message::Element::builder(structure).src(&element);
            post(&element, message.build());
        }
    }
}

/// Prompts, and the frame that they begin with.
fn of_prompts(name: &str, prompts: &Prompts, first: Stamp) -> gst::Structure {
    gst::Structure::builder(name)
        .field("prompt", &prompts.prompt)
        .field("negative-prompt", prompts.negative.as_deref().unwrap_or(""))
        .field_if_some("pts", first.pts)
        .field_if_some("running-time", first.running_time)
        .build()
}

fn post(element: &StreamDiffusion, message: gst::Message) {
    if element.post_message(message).is_err() {
        gst::debug!(CAT, obj = element, "No bus to post to");
    }
}

/// Warns that the model is tried in `venue` only because it cannot be run where it was to be, for `reason`.
pub(super) fn elsewhere(element: &StreamDiffusion, venue: &Venue, reason: &str) {
    let (backend, device) = (venue.backend(), venue.name());
    let reason = errors::c_text(reason);
    gst::element_warning!(
        element,
        gst::LibraryError::Init,
        ("{reason}. Now {backend} tries it, on the {device}")
    );
}

impl Observer for ElementObserver {
    fn loading(&self, loading: Loading<'_>) {
        use gst::ProgressType::{Canceled, Complete, Continue, Error, Start};
        let progress = |kind, text: &str| self.progress(kind, "loading", text);
        match loading {
            Loading::Started => {
                let model = self.order.model().display();
                progress(Start, &format!("loading model {model}"));
            }
            Loading::Component(component) => progress(Continue, &format!("loading {component}")),
            Loading::Complete(loaded, took) => {
                let (device, reason) = self.place.lock().clone();
                progress(Complete, &format!("loaded {}", loaded.folder().name()));
                self.post(
                    gst::Structure::builder("streamdiffusion-model-loaded")
                        .field("model", loaded.folder().name())
                        .field("backend", loaded.backend())
                        .field("device", device)
                        .field("reason", reason)
                        .field("load-time-ns", took.as_nanos() as u64)
                        .build(),
                );
            }
            Loading::Canceled => progress(Canceled, "the element was stopped"),
            Loading::Failed(error) => progress(Error, &error.to_string()),
        }
    }

    fn moved(&self, venue: &Venue, reason: &str) {
        *self.place.lock() = (venue.name(), reason.to_owned());
        if let Some(element) = self.element.upgrade() {
            element.imp().stay(&self.order, venue, reason);
            elsewhere(&element, venue, reason);
        }
    }

    fn failed(&self, error: &Error) {
        if let Some(element) = self.element.upgrade() {
            gst::error!(CAT, obj = element, "{error}");
            element.post_error_message(errors::message(error));
        }
    }

    fn change_refused(&self, error: &Error) {
        if let Some(element) = self.element.upgrade() {
            gst::element_warning!(
                element,
                gst::LibraryError::Settings,
                (
                    "{}; the old value stays in force",
                    errors::c_text(&error.to_string())
                )
            );
        }
    }

    fn warned(&self, error: &Error) {
        if let Some(element) = self.element.upgrade() {
            let text = errors::c_text(&error.to_string());
            gst::element_warning!(element, gst::LibraryError::Settings, ("{text}"));
        }
    }

    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    fn building(&self, progress: &crate::engine::BuildProgress) {
        let (kind, text) = super::building::told(progress);
        self.progress(kind, super::building::CODE, &text);
    }

    fn prompts_turn(&self, prompts: &Prompts, length: u64, first: Stamp) {
        let mut structure = of_prompts("streamdiffusion-prompt-transition", prompts, first);
        structure.set("duration", length);
        self.post(structure);
    }

    fn prompts_applied(&self, prompts: &Prompts, first: Stamp) {
        let name = "streamdiffusion-prompt-applied";
        self.post(of_prompts(name, prompts, first));
    }

    fn skipping(&self, change: Change, with: Stamp) {
        let (name, similarity, skipped) = match change {
            Change::Skipping {
                similarity,
                skipped,
            } => ("skipping", Some(similarity), skipped),
            Change::Resumed {
                similarity,
                skipped,
            } => ("resumed", similarity, skipped),
        };
        self.post(
            gst::Structure::builder(format!("streamdiffusion-{name}"))
                .field_if_some("similarity", similarity.map(f64::from))
                .field("skipped", skipped)
                .field_if_some("pts", with.pts)
                .field_if_some("running-time", with.running_time)
                .build(),
        );
    }

    fn teller(&self) -> Option<Teller> {
        story::wanted().then(|| {
            let element = self.element.clone();
            let teller: Teller = Arc::new(move |line| {
                if let Some(element) = element.upgrade() {
                    gst::log!(CAT, obj = element, "{line}");
                }
            });
            teller
        })
    }
}
