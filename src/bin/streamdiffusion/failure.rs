//! Why the program stops.

use gststreamdiffusion::error::Error;

/// What went wrong, in words for whoever typed the command.
#[derive(Debug)]
pub struct Failure {
    message: String,
    detail: Option<String>,
    status: u8,
}

impl Failure {
    /// Something did not work: exit status 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            detail: None,
            status: 1,
        }
    }

    /// The command line asks for what cannot be: exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            status: 2,
            ..Self::new(message)
        }
    }

    /// With more about it, for whoever asks for more.
    pub fn with_detail(mut self, detail: Option<String>) -> Self {
        self.detail = detail.filter(|detail| !detail.is_empty());
        self
    }

    /// What an error message on a bus says.
    pub fn from_message(message: &gst::message::Error) -> Self {
        Self::new(message.error().message())
            .with_detail(message.debug().map(|debug| debug.to_string()))
    }

    /// More about it.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The exit status it comes to.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.to_string())
    }
}
