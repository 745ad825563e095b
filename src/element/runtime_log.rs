//! What ONNX Runtime says, in GStreamer's log.

use std::sync::{LazyLock, Once};

use crate::engine::onnxruntime::{self, Severity};

/// The name of the debug category.
const NAME: &str = "streamdiffusion-onnxruntime";

/// Has what ONNX Runtime says go to a debug category of its own, from now on.
///
/// What fails for good is told by the element, so what is an error to ONNX Runtime is none here: the CUDA provider says so of
/// each way to compute something that it tries in vain, before it takes another one.
pub fn listen_to_onnxruntime() {
    static ONNXRUNTIME: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
        gst::DebugCategory::new(
            NAME,
            gst::DebugColorFlags::empty(),
            Some("What ONNX Runtime says"),
        )
    });
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        // Known before anything is said in it.
        LazyLock::force(&ONNXRUNTIME);
        onnxruntime::set_sink(|severity, message| match severity {
            Severity::Fatal => gst::error!(ONNXRUNTIME, "{message}"),
            Severity::Error => gst::info!(ONNXRUNTIME, "{message}"),
            Severity::Warning => gst::debug!(ONNXRUNTIME, "{message}"),
            Severity::Info => gst::log!(ONNXRUNTIME, "{message}"),
            Severity::Verbose => gst::trace!(ONNXRUNTIME, "{message}"),
        });
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// With the real library, from which nothing goes to the terminal then.
    #[test]
    fn what_onnx_runtime_says_goes_to_a_category_of_its_own() {
        gst::init().unwrap();
        listen_to_onnxruntime();
        let category = gst::DebugCategory::get(NAME).unwrap();
        category.set_threshold(gst::DebugLevel::Log);
        let heard: Arc<Mutex<Vec<(gst::DebugLevel, String)>>> = Arc::default();
        let function = gst::log::add_log_function({
            let heard = heard.clone();
            move |category, level, _, _, _, _, message| {
                if category.name() == NAME {
                    let text = message.get().map(|text| text.to_string());
                    heard.lock().push((level, text.unwrap_or_default()));
                }
            }
        });
        onnxruntime::log::tests::run_what_fails();
        gst::log::remove_log_function(function);
        category.set_threshold(gst::DebugLevel::None);
        let heard = heard.lock();
        let told = |(level, text): &(gst::DebugLevel, String)| {
            *level == gst::DebugLevel::Info && text.contains("Reshape")
        };
        assert!(heard.iter().any(told), "{heard:?}");
    }
}
