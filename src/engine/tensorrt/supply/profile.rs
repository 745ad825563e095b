//! What engines are built for that are to do what is wanted.

use super::super::recipe::{Profile, Span};
use super::Wanted;
use crate::engine::built::ROWS;
use crate::engine::{Built, Calls};
use crate::model::ModelFolder;

/// Side of a picture where neither the model nor the user says it.
const SIDE: usize = 512;

impl Profile {
    /// The size that frames of the model are processed at where nobody says: width and height in pixels.
    pub fn own_size(folder: &ModelFolder) -> (usize, usize) {
        let defaults = &folder.manifest().defaults;
        let multiple = folder.multiple();
        let own = |side: Option<usize>, fixed: Option<usize>| {
            let side = side.or(defaults.size).unwrap_or(SIDE);
            fixed.unwrap_or_else(|| (side / multiple).max(1) * multiple)
        };
        let fixed = folder.fixed_size();
        (
            own(defaults.width, fixed.map(|(width, _)| width)),
            own(defaults.height, fixed.map(|(_, height)| height)),
        )
    }

    /// What engines are built for that are to do this, and what is usual beside it.
    pub fn for_wanted(folder: &ModelFolder, wanted: &Wanted) -> Self {
        let (width, height) = Self::own_size(folder);
        let Calls { frames, rows, .. } = wanted.calls;
        Self {
            rows: Span::new(1, rows, rows.max(ROWS * frames)),
            frames: Span::new(1, frames, frames),
            width: Span::of(wanted.width.unwrap_or(width)),
            height: Span::of(wanted.height.unwrap_or(height)),
            chunks: Span::of(1),
        }
    }

    /// The same as engines would have it, with the command that builds them.
    pub(super) fn built(&self, command: String) -> Built {
        let both = |span: Span| (span.min, span.max);
        Built {
            width: both(self.width),
            height: both(self.height),
            rows: both(self.rows),
            frames: both(self.frames),
            chunks: both(self.chunks),
            command,
        }
    }
}
