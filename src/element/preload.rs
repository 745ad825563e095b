//! Loading a model before the element starts: what the action signal `load` does.

use std::path::{Path, PathBuf};

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::StreamDiffusion;
use super::messages::ElementObserver;
use super::settings::Settings;
use super::stats::Stats;
use super::venue::Venue;
use super::worker::Worker;
use super::{Backend, BuildEngines, CAT, errors, messages, model_path};
use crate::model::ModelFolder;

/// What decides which model is loaded, and where.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Order {
    model: PathBuf,
    backend: Backend,
    device_id: i32,
    build_engines: BuildEngines,
    onnxruntime_library: Option<PathBuf>,
    tensorrt_library: Option<PathBuf>,
}

impl Order {
    /// By these properties; an error where there is no bundled model.
    fn of(settings: &Settings) -> Result<Self, gst::ErrorMessage> {
        let model = match &settings.model {
            Some(model) => model.clone(),
            None => model_path::bundled().map_err(|error| errors::message(&error))?,
        };
        Ok(Self {
            model,
            backend: settings.backend,
            device_id: settings.device_id,
            build_engines: settings.build_engines,
            onnxruntime_library: settings.onnxruntime_library.clone(),
            tensorrt_library: settings.tensorrt_library.clone(),
        })
    }

    /// The model's folder as it was asked for.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// The model's folder. Looked into before anything is begun, so that the change of state itself fails where it is no
    /// model: an error that comes while it is going on is missed by some who wait for it, as by gst-launch-1.0.
    fn folder(&self) -> Result<ModelFolder, gst::ErrorMessage> {
        ModelFolder::open(&self.model).map_err(|error| errors::message(&error))
    }
}

/// Where a model went that could not be loaded where that was tried first, and why.
pub(super) struct Settled {
    order: Order,
    venue: Venue,
    reason: String,
}

/// A worker that loads, or has loaded, a model for an element that has not started yet.
pub(super) struct Preload {
    order: Order,
    venue: Venue,
    worker: Worker,
}

impl StreamDiffusion {
    /// Begins to load the model in the background, in READY. Whether it did: not in another state, nor where the same
    /// model has been asked for already.
    pub(super) fn preload(&self) -> bool {
        if !self.rests() {
            gst::debug!(CAT, imp = self, "Models are loaded ahead in READY only");
            return false;
        }
        let settings = self.settings.lock().clone();
        let order = match Order::of(&settings).and_then(|order| order.folder().map(|_| order)) {
            Ok(order) => order,
            Err(error) => {
                self.post_error_message(error);
                return false;
            }
        };
        let other = {
            let mut preload = self.preload.lock();
            match &*preload {
                Some(same) if same.order == order && !same.worker.failed() => return false,
                _ => preload.take(),
            }
        };
        // Gives up what is not wanted any more.
        drop(other);
        match self.begin_loading(&order) {
            Ok((worker, venue)) => {
                let preload = Preload {
                    order,
                    venue,
                    worker,
                };
                let other = self.preload.lock().replace(preload);
                drop(other);
            }
            Err(error) => {
                self.post_error_message(error);
                return false;
            }
        }
        // A change of state that began meanwhile has not seen it.
        let late = !self.rests();
        if late {
            self.forget_preload();
        }
        !late
    }

    /// Gives up a model that is loaded ahead; waits for the component that is being loaded.
    pub(super) fn forget_preload(&self) {
        let preload = self.preload.lock().take();
        drop(preload);
    }

    /// The worker that has the model that `settings` ask for: the one that loads it already, else a new one.
    pub(super) fn loading_worker(&self, settings: &Settings) -> Result<Worker, gst::ErrorMessage> {
        let order = Order::of(settings)?;
        self.check(settings, &order)?;
        let preload = self.preload.lock().take();
        if let Some(preload) = preload
            && preload.order == order
            && preload.venue.still_does(settings, &order.model)
            && !preload.worker.failed()
        {
            *self.venue.lock() = Some(preload.venue);
            return Ok(preload.worker);
        }
        self.begin_loading(&order).map(|(worker, _)| worker)
    }

    /// Whether the model of `order` can be begun with these settings, as far as its folder tells.
    fn check(&self, settings: &Settings, order: &Order) -> Result<(), gst::ErrorMessage> {
        // Kept from before, so that READY and back is quick.
        let kept = self.kept.lock().clone();
        let kept = kept.filter(|loaded| loaded.folder().path() == order.model());
        let opened;
        let folder = match &kept {
            Some(loaded) => loaded.folder(),
            None => {
                opened = order.folder()?;
                &opened
            }
        };
        // Nothing is made of them yet, or a controller sets others before the first frame.
        if settings.bypass || self.obj().has_active_control_bindings() {
            return Ok(());
        }
        (settings.check(folder)).map_err(|error| errors::message(&error))
    }

    /// Decides where to run the model, and starts a worker that loads it.
    fn begin_loading(&self, order: &Order) -> Result<(Worker, Venue), gst::ErrorMessage> {
        let model = order.model.display();
        gst::info!(CAT, imp = self, "Loading model {model}");
        let (venue, reason) = match self.settled(order) {
            Some(settled) => settled,
            None => {
                let decision = self.decide().map_err(|error| errors::message(&error))?;
                if decision.instead {
                    messages::elsewhere(&self.obj(), &decision.venue, &decision.reason);
                }
                (decision.venue, decision.reason)
            }
        };
        let device = venue.name();
        *self.stats.lock() = Stats::started(device.clone(), reason.clone());
        let observer = ElementObserver::new(&self.obj(), order.clone(), device, reason);
        let worker = Worker::new(
            order.model.clone(),
            venue.clone(),
            order.backend == Backend::Auto,
            self.stats.clone(),
            observer,
        )
        .map_err(|err| gst::error_msg!(gst::LibraryError::Init, ("no worker thread: {err}")))?;
        Ok((worker, venue))
    }

    /// Has the model of `order` loaded in `venue` again until NULL: what was tried before that would fail once more, perhaps
    /// after minutes.
    pub(super) fn stay(&self, order: &Order, venue: &Venue, reason: &str) {
        let settled = Settled {
            order: order.clone(),
            venue: venue.clone(),
            reason: reason.to_owned(),
        };
        let other = self.settled.lock().replace(settled);
        drop(other);
    }

    /// Where the model of `order` went, and why, if that was not where it was to be at first.
    fn settled(&self, order: &Order) -> Option<(Venue, String)> {
        let settled = self.settled.lock();
        let Settled { venue, reason, .. } = settled.as_ref().filter(|s| s.order == *order)?;
        *self.venue.lock() = Some(venue.clone());
        Some((venue.clone(), reason.clone()))
    }

    /// Whether the element is in READY, and stays there.
    fn rests(&self) -> bool {
        let (_, current, pending) = self.obj().state(Some(gst::ClockTime::ZERO));
        (current, pending) == (gst::State::Ready, gst::State::VoidPending)
    }
}
