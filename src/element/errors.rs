//! Errors from below as GStreamer errors.

use crate::error::Error;

/// The GStreamer error for `error`, in the domain that says whose fault it is.
pub fn message(error: &Error) -> gst::ErrorMessage {
    let text = c_text(&error.to_string());
    match error {
        Error::NotFound { .. } => gst::error_msg!(gst::ResourceError::NotFound, ("{}", text)),
        Error::Invalid { .. } => gst::error_msg!(gst::StreamError::Format, ("{}", text)),
        Error::Setting { .. } => gst::error_msg!(gst::LibraryError::Settings, ("{}", text)),
        Error::Library(_) => gst::error_msg!(gst::LibraryError::Init, ("{}", text)),
        Error::Engine { .. } => gst::error_msg!(gst::StreamError::Failed, ("{}", text)),
    }
}

/// `text` as a C string can hold it: model folders may name themselves with null characters.
pub fn c_text(text: &str) -> String {
    text.replace('\0', "")
}
