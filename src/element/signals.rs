//! The action signals.

use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use gst::glib;
use gst::glib::subclass::Signal;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::CAT;
use super::imp::StreamDiffusion;

/// `reset()`: forgets all that frames have left behind, as at the beginning of a stream: what the similarity filter
/// compares with, where noise that changes had got to, and their random numbers. Frames under way leave first. It takes
/// effect with the next frame that comes in.
///
/// `load() → gboolean`: in READY, begins to load the model in the background, with messages of its progress, so that going
/// to PAUSED and the first frame are quick; whether it did. After `model`, `backend` or `device-id` was changed it loads anew.
/// Going to NULL gives it up.
pub static SIGNALS: LazyLock<Vec<Signal>> = LazyLock::new(|| {
    let element = |values: &[glib::Value]| {
        let element = values.first()?.get::<super::StreamDiffusion>();
        element.ok()
    };
    vec![
        Signal::builder("reset")
            .action()
            .class_handler(move |values| {
                element(values)?.imp().ask_for_reset();
                None
            })
            .build(),
        Signal::builder("load")
            .action()
            .return_type::<bool>()
            .class_handler(move |values| {
                let loads = element(values).is_some_and(|element| element.imp().preload());
                Some(loads.to_value())
            })
            .build(),
    ]
});

impl StreamDiffusion {
    /// Has the next frame begin anew.
    fn ask_for_reset(&self) {
        gst::debug!(CAT, imp = self, "A reset is asked for");
        self.reset_asked.store(true, Ordering::SeqCst);
    }

    /// Begins anew if that was asked for, after the frames under way have left. On the streaming thread.
    pub(super) fn reset_if_asked(&self) -> Result<(), gst::FlowError> {
        if self.reset_asked.swap(false, Ordering::SeqCst) {
            self.drain()?;
            self.renew();
        }
        Ok(())
    }

    /// Forgets all that frames have left behind, here and in the worker's stream.
    pub(super) fn renew(&self) {
        let mut state = self.state.lock();
        state.reset();
        if let Some(asker) = &state.asker {
            asker.renew();
        }
    }
}
