//! A program under test that runs beside the test, and is talked to.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, plugin};

/// A program and what it has said.
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// All lines of standard output and standard error so far.
    pub said: Vec<String>,
}

impl Process {
    /// Starts it, in a group of its own, so that what it starts ends with it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (sender, lines) = channel();
        forward(child.stdout.take().unwrap(), sender.clone());
        forward(child.stderr.take().unwrap(), sender);
        Self {
            input: child.stdin.take(),
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits for a line that has `part` in it.
    #[track_caller]
    pub fn wait_for(&mut self, part: &str) -> String {
        self.wait_until(part, |line| line.contains(part))
    }

    /// Waits for a line that `is` is true of.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + Duration::from(PATIENCE);
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.said.push(line);
                    let line = self.said.last().unwrap();
                    if is(line) {
                        return line.clone();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("not in time: {what}\n{}", self.told()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before: {what}\n{}", self.told())
                }
            }
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) {
        // SAFETY: kill has no memory to harm; the child is not waited for yet, so its number is still its own.
        let result = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) };
        assert_eq!(result, 0);
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        self.finish_within(Duration::from(PATIENCE))
    }

    /// Waits that long for its end.
    #[track_caller]
    pub fn finish_within(&mut self, patience: Duration) -> ExitStatus {
        drop(self.input.take());
        let end = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end\n{}", self.told()),
            }
        }
    }

    /// All that it has said.
    pub fn told(&self) -> String {
        self.said.join("\n")
    }

    /// How many lines so far have `part` in them.
    pub fn count(&self, part: &str) -> usize {
        self.said.iter().filter(|line| line.contains(part)).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: kill has no memory to harm; the child is not waited for yet, so the group's number is its own.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        }
        let _ = self.child.wait();
    }
}

/// Sends each line of `from` on, until its end.
fn forward(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = to.send(line);
        }
    });
}

/// A command that finds the plugin that was just built, the bundled model and GStreamer's own plugins.
pub fn program(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("GST_PLUGIN_PATH", &*PLUGINS)
        // Kept from one run to the next: it takes seconds to make.
        .env("GST_REGISTRY", scratch().join("examples-registry.bin"))
        .env("GST_STREAMDIFFUSION_MODELS", root().join("models"))
        .env("GST_DEBUG", "streamdiffusion:4")
        .env("GST_DEBUG_NO_COLOR", "1");
    command
}

/// The Python for which the system's package manager installs bindings.
pub fn python() -> Command {
    let system = Path::new("/usr/bin/python3");
    let mut command = program(if system.exists() {
        system
    } else {
        Path::new("python3")
    });
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The folder that cargo builds programs into.
pub fn built() -> PathBuf {
    plugin().parent().unwrap().to_owned()
}

/// A folder with the plugin alone: GStreamer looks into all that lies beside and below a plugin.
static PLUGINS: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = scratch().join("plugins");
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join(plugin().file_name().unwrap());
    if !std::fs::read_link(&link).is_ok_and(|to| to == plugin()) {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(plugin(), &link).unwrap();
    }
    folder
});
