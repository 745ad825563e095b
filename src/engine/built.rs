//! What engines that are built ahead of time were built for, and how to build others.

use crate::error::{Error, Result};

/// Rows of a U-Net call that engines are built for unless more is asked for, by frame of a group: four steps, each with a
/// negative prompt.
pub const ROWS: usize = 8;
/// A largest value where there is no limit.
pub const ANY: usize = usize::MAX;

/// What the engines of a model were built for: each from the smallest to the largest, [`ANY`] where nothing limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Width in pixels.
    pub width: (usize, usize),
    /// Height in pixels.
    pub height: (usize, usize),
    /// Rows of a U-Net call.
    pub rows: (usize, usize),
    /// Frames of an autoencoder call.
    pub frames: (usize, usize),
    /// Chunks of text.
    pub chunks: (usize, usize),
    /// The command that builds engines of this model for this GPU, less the options that say for what.
    pub command: String,
}

/// How far engines are that are built while a model loads.
#[derive(Debug, Clone)]
pub enum BuildProgress {
    /// It begins, for this reason.
    Begun(String),
    /// It goes on: what is being done, and how much of all is done, in percent.
    Continues(String, u32),
    /// All are built.
    Complete,
    /// It was ended, as asked. Nothing is left of it.
    Cancelled,
    /// It failed.
    Failed(Error),
}

/// What the U-Net calls of a stream come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// Steps of a frame.
    pub steps: usize,
    /// Frames that enter together.
    pub frames: usize,
    /// Rows of a call with all slots under way, those with the negative prompt included.
    pub rows: usize,
}

impl Built {
    /// The command that builds engines for this.
    pub fn build_command(&self) -> String {
        let mut text = self.command.clone();
        let ((w, width), (h, height)) = (self.width, self.height);
        match (w == width && h == height, width.max(height)) {
            (_, ANY) => {}
            (true, _) => text += &format!(" --size {w}x{h}"),
            (false, _) => text += &format!(" --size {w}x{h}..{width}x{height}"),
        }
        let frames = match self.frames.1 {
            ANY => 1,
            frames => frames,
        };
        if ![ROWS * frames, ANY].contains(&self.rows.1) || self.rows.0 > 1 {
            text += &format!(" --batch {}..{}", self.rows.0, self.rows.1);
        }
        if frames > 1 {
            text += &format!(" --frame-buffer-size {frames}");
        }
        if ![1, ANY].contains(&self.chunks.1) {
            text += &format!(" --chunks {}..{}", self.chunks.0, self.chunks.1);
        }
        text
    }

    /// An error unless pictures of this size can be processed; it names the property at fault.
    pub fn check_size(&self, width: usize, height: usize) -> Result<()> {
        let outside = |side: usize, (min, max): (usize, usize)| side < min || side > max;
        let property = match (outside(width, self.width), outside(height, self.height)) {
            (true, _) => "width",
            (false, true) => "height",
            (false, false) => return Ok(()),
        };
        let (w, h) = (self.width, self.height);
        let have = match w.0 == w.1 && h.0 == h.1 {
            true => format!("{}x{}", w.0, h.0),
            false => format!("{}x{} to {}x{}", w.0, h.0, w.1, h.1),
        };
        let wanted = Self {
            width: (width, width),
            height: (height, height),
            ..self.clone()
        };
        Err(Error::setting(
            property,
            format!(
                "{width}x{height} cannot be processed: the engines were built for {have}. \"{}\" builds others",
                wanted.build_command()
            ),
        ))
    }

    /// An error unless a stream's calls can be served in one run each; it names the property at fault.
    pub fn check_calls(&self, calls: Calls) -> Result<()> {
        let Calls {
            steps,
            frames,
            rows,
        } = calls;
        let (most_rows, most_frames) = (self.rows.1, self.frames.1);
        if frames <= most_frames && rows <= most_rows {
            return Ok(());
        }
        let frames_for = match most_frames {
            ANY => frames,
            most => most.max(frames),
        };
        let wanted = Self {
            rows: match most_rows {
                ANY => self.rows,
                most => (self.rows.0, most.max(rows).max(ROWS * frames_for)),
            },
            frames: (self.frames.0, frames_for),
            ..self.clone()
        };
        let command = wanted.build_command();
        if frames > most_frames {
            return Err(Error::setting(
                "frame-buffer-size",
                format!(
                    "{frames} cannot be served: the engines were built for {most_frames} at most. \"{command}\" builds others"
                ),
            ));
        }
        // The one without which it would do.
        let property = match (steps * frames <= most_rows, steps <= most_rows) {
            (true, _) => "cfg-type",
            (false, true) if frames > 1 => "frame-buffer-size",
            _ => "steps",
        };
        let groups = match frames {
            1 => String::new(),
            _ => format!(" of {frames} frames"),
        };
        Err(Error::setting(
            property,
            format!(
                "{steps} steps{groups} take {rows} rows of the U-Net with this guidance: its engine was built for {most_rows} at most. \"{command}\" builds another"
            ),
        ))
    }

    /// An error unless texts of so many chunks can be encoded.
    pub fn check_chunks(&self, chunks: usize) -> Result<()> {
        if chunks <= self.chunks.1 {
            return Ok(());
        }
        let wanted = Self {
            chunks: (self.chunks.0, chunks),
            ..self.clone()
        };
        Err(Error::setting(
            "prompt",
            format!(
                "too long: it takes {chunks} chunks, the engines were built for {} at most. \"{}\" builds others",
                self.chunks.1,
                wanted.build_command()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> Built {
        Built {
            width: (512, 512),
            height: (512, 512),
            rows: (1, 8),
            frames: (1, 1),
            chunks: (1, 1),
            command: "streamdiffusion build m".into(),
        }
    }

    fn calls(steps: usize, frames: usize, rows: usize) -> Calls {
        Calls {
            steps,
            frames,
            rows,
        }
    }

    #[track_caller]
    fn refused(result: Result<()>, property: &str, parts: &[&str]) {
        let text = result.unwrap_err().to_string();
        assert!(
            text.starts_with(&format!("property {property}: ")),
            "{text}"
        );
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }

    #[test]
    fn sizes_outside_name_the_side_and_the_command() {
        let size = |width, height| built().check_size(width, height);
        assert!(size(512, 512).is_ok());
        let command = "\"streamdiffusion build m --size 640x512\"";
        refused(
            size(640, 512),
            "width",
            &["640x512", "for 512x512", command],
        );
        refused(size(512, 384), "height", &["--size 512x384\""]);
        let ranged = Built {
            width: (384, 1024),
            rows: (1, 12),
            ..built()
        };
        assert!(ranged.check_size(768, 512).is_ok());
        let parts = ["for 384x512 to 1024x512", "--size 256x512 --batch 1..12\""];
        refused(ranged.check_size(256, 512), "width", &parts);
    }

    #[test]
    fn calls_that_are_too_large_name_what_makes_them_so() {
        let built = built();
        for fine in [calls(4, 1, 8), calls(8, 1, 8), calls(1, 1, 1)] {
            assert!(built.check_calls(fine).is_ok(), "{fine:?}");
        }
        let command = "streamdiffusion build m --size 512x512 --batch 1..12\"";
        let twelve = built.check_calls(calls(12, 1, 12));
        refused(twelve, "steps", &["take 12 rows", "for 8 at most", command]);
        let parts = ["5 steps take 10 rows", "--batch 1..10\""];
        refused(built.check_calls(calls(5, 1, 10)), "cfg-type", &parts);
        // The usual rows for two frames need no option of their own.
        let parts = ["for 1 at most", "--size 512x512 --frame-buffer-size 2\""];
        refused(
            built.check_calls(calls(2, 2, 4)),
            "frame-buffer-size",
            &parts,
        );
        let two = Built {
            frames: (1, 4),
            ..built.clone()
        };
        let parts = ["3 steps of 4 frames", "--frame-buffer-size 4\""];
        refused(
            two.check_calls(calls(3, 4, 12)),
            "frame-buffer-size",
            &parts,
        );
        // What the graph fixes is no engine's fault, and done in several runs.
        let any = Built {
            rows: (1, ANY),
            frames: (1, ANY),
            ..built
        };
        assert!(any.check_calls(calls(40, 7, 560)).is_ok());
    }

    #[test]
    fn texts_that_are_too_long_name_the_command() {
        assert!(built().check_chunks(1).is_ok());
        let parts = [
            "3 chunks",
            "for 1 at most",
            "--size 512x512 --chunks 1..3\"",
        ];
        refused(built().check_chunks(3), "prompt", &parts);
    }
}
