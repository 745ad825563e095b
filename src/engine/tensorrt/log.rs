//! What TensorRT has to say. It knows one logger per process, so there is one.

use std::cell::RefCell;

use parking_lot::RwLock;

use crate::error::{Error, Result};

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// An error inside TensorRT.
    InternalError,
    /// Something was refused or did not work.
    Error,
    /// Something works, but not as it might be meant to.
    Warning,
    /// What it does.
    Info,
    /// All of it.
    Verbose,
}

type Sink = Box<dyn Fn(Severity, &str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Errors that this thread's call into TensorRT has told, while someone wants to know.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Sends all that TensorRT says to `sink`, from any thread, from now on. It must not call TensorRT.
pub fn set_sink(sink: impl Fn(Severity, &str) + Send + Sync + 'static) {
    *SINK.write() = Some(Box::new(sink));
}

/// Runs `call` and gives what it gives, with the errors that TensorRT told meanwhile on this thread.
pub(super) fn listen<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    HEARD.with(|heard| *heard.borrow_mut() = Some(Vec::new()));
    let result = call();
    let heard = HEARD.with(|heard| heard.borrow_mut().take());
    (result, heard.unwrap_or_default())
}

/// The process's logger.
pub(super) fn logger() -> Result<&'static trtx::Logger> {
    static LOGGER: RwLock<Option<&'static trtx::Logger>> = RwLock::new(None);
    if let Some(logger) = *LOGGER.read() {
        return Ok(logger);
    }
    let mut logger = LOGGER.write();
    if let Some(logger) = *logger {
        return Ok(logger);
    }
    let new = trtx::Logger::new(Handler)
        .map_err(|e| Error::Library(format!("TensorRT's logger: {e}")))?;
    // TensorRT keeps the first logger it is given for as long as it is loaded.
    Ok(logger.insert(Box::leak(Box::new(new))))
}

struct Handler;

impl trtx::LogHandler for Handler {
    fn log(&self, severity: trtx::Severity, message: &str) {
        let severity = match severity {
            trtx::Severity::InternalError => Severity::InternalError,
            trtx::Severity::Error => Severity::Error,
            trtx::Severity::Warning => Severity::Warning,
            trtx::Severity::Info => Severity::Info,
            trtx::Severity::Verbose => Severity::Verbose,
        };
        if severity <= Severity::Error {
            // A thread that ends has no such memory any more; its words still go to the sink.
            let _ = HEARD.try_with(|heard| {
                if let Ok(mut heard) = heard.try_borrow_mut()
                    && let Some(heard) = heard.as_mut()
                {
                    heard.push(message.trim().to_owned());
                }
            });
        }
        if let Some(sink) = SINK.read().as_ref() {
            sink(severity, message);
        }
    }
}
