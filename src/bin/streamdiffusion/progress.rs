//! A line on standard error that says how far things are, if anyone can see it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Cells of the bar.
const WIDTH: usize = 24;
/// Time between two drawings of the line.
const PAUSE: Duration = Duration::from_millis(100);

/// The line. It is wiped when dropped.
pub struct Progress {
    visible: bool,
    total: u64,
    start: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    /// A line for `total` units of work. Only a terminal shows it.
    pub fn new(total: u64) -> Self {
        Self {
            visible: std::io::stderr().is_terminal(),
            total,
            start: Instant::now(),
            drawn: None,
        }
    }

    /// Shows that `done` units are done and what is under way.
    pub fn show(&mut self, done: u64, what: &str) {
        let now = Instant::now();
        if !self.visible || self.drawn.is_some_and(|drawn| now < drawn + PAUSE) {
            return;
        }
        self.drawn = Some(now);
        let line = line(done, self.total, self.start.elapsed(), what);
        // A line that cannot be drawn is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    /// Prints a line of its own above.
    pub fn say(&mut self, text: &str) {
        self.wipe();
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn wipe(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.wipe();
    }
}

fn line(done: u64, total: u64, elapsed: Duration, what: &str) -> String {
    let share = done.min(total) as f64 / total.max(1) as f64;
    let full = (share * WIDTH as f64).round() as usize;
    let bar = format!("{}{}", "#".repeat(full), "-".repeat(WIDTH - full));
    let left = if done == 0 || share >= 1.0 {
        String::new()
    } else {
        let seconds = elapsed.as_secs_f64() * (1.0 / share - 1.0);
        let seconds = seconds.ceil().min(1e9) as u64;
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, s) => format!(" {s} s left"),
            (0, m, s) => format!(" {m}:{s:02} left"),
            (h, m, s) => format!(" {h}:{m:02}:{s:02} left"),
        }
    };
    // Short enough for any terminal, so that the line stays one.
    let what: String = crate::printing::shown(what).chars().take(24).collect();
    format!("[{bar}] {:3.0} %{left}  {what}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_time_gone() {
        let at = |done, seconds| line(done, 8, Duration::from_secs(seconds), "a.png");
        assert_eq!(at(0, 3), format!("[{}]   0 %  a.png", "-".repeat(24)));
        assert!(at(2, 10).contains(" 25 % 30 s left"), "{}", at(2, 10));
        assert!(at(1, 100).contains(" 11:40 left"), "{}", at(1, 100));
        assert!(at(1, 10_000).contains(" 19:26:40 left"));
        assert!(at(8, 10).starts_with(&format!("[{}] 100 %", "#".repeat(24))));
        assert!(line(0, 0, Duration::ZERO, "").contains("0 %"));
    }
}
