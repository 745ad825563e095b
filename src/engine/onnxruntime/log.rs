//! What ONNX Runtime has to say beside the errors that its calls return. A process has one logger for it, but for sessions that
//! have one of their own; without it, all goes to the terminal, as what the CUDA provider tries in vain before it finds a way.

use std::sync::Arc;

use ort::logging::{LogLevel, LoggerFunction};
use parking_lot::RwLock;

/// How much a message matters to ONNX Runtime. What fails for good comes back as an error as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot go on.
    Fatal,
    /// Something did not work. It may be one of several ways, of which another one does.
    Error,
    /// Something works, but not as it might be meant to.
    Warning,
    /// What it does.
    Info,
    /// All of it.
    Verbose,
}

/// From here on the environment tells of it, as it does without a logger.
pub(super) const LEAST: LogLevel = LogLevel::Error;

type Sink = Box<dyn Fn(Severity, &str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Sends all that ONNX Runtime says to `sink`, from any thread, from now on. It must not call ONNX Runtime. Without one,
/// nobody hears of it.
pub fn set_sink(sink: impl Fn(Severity, &str) + Send + Sync + 'static) {
    *SINK.write() = Some(Box::new(sink));
}

/// A message of ONNX Runtime's, said at `location` in its sources.
pub(super) fn tell(level: LogLevel, location: &str, message: &str) {
    let severity = match level {
        LogLevel::Fatal => Severity::Fatal,
        LogLevel::Error => Severity::Error,
        LogLevel::Warning => Severity::Warning,
        LogLevel::Info => Severity::Info,
        LogLevel::Verbose => Severity::Verbose,
    };
    if let Some(sink) = SINK.read().as_ref() {
        sink(severity, &format!("{} ({location})", message.trim_end()));
    }
}

/// The logger of the process.
pub(super) fn logger() -> LoggerFunction {
    Arc::new(
        |level: LogLevel, _: &str, _: &str, location: &str, message: &str| {
            tell(level, location, message);
        },
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use ort::session::Session;
    use ort::value::Tensor;

    use crate::engine::onnxruntime::library;

    /// A field of a message in the file format of ONNX, whose content is short.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    /// Has ONNX Runtime run what cannot work: a tensor of three values is given the shape of seven. Field numbers are those
    /// of onnx.proto.
    pub(crate) fn run_what_fails() {
        let shape = field(2, &field(1, &field(2, b"n")));
        let floats = field(2, &field(1, &[number(1, 1), shape].concat()));
        let value = |name: &[u8]| [field(1, name), floats.clone()].concat();
        let node = [
            field(1, b"x"),
            field(1, b"seven"),
            field(2, b"y"),
            field(4, b"Reshape"),
        ];
        let seven = [
            number(1, 1),
            number(2, 7),
            field(8, b"seven"),
            field(9, &7i64.to_le_bytes()),
        ];
        let graph = [
            field(1, &node.concat()),
            field(2, b"g"),
            field(5, &seven.concat()),
            field(11, &value(b"x")),
            field(12, &value(b"y")),
        ];
        let model = [
            number(1, 8),
            field(7, &graph.concat()),
            field(8, &number(2, 17)),
        ];
        let runtime = library::runtime().unwrap();
        let mut session = Session::builder(&runtime.environment)
            .unwrap()
            .commit_from_memory(&model.concat())
            .unwrap();
        let three = Tensor::from_array(([3], vec![0f32; 3])).unwrap();
        assert!(session.run(ort::inputs!["x" => three]).is_err());
    }
}
