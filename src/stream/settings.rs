//! What a stream does, frame by frame.

use super::guidance::Guidance;
use super::schedule::Method;
use super::similarity::Similarity;
use super::variation::Variation;
use crate::engine::Calls;

/// What frames start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The input's picture, noised.
    #[default]
    ImageToImage,
    /// Noise alone; the input gives time and size.
    TextToImage,
}

/// What may change from one frame to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Length of the schedule that `t_index_list` indexes.
    pub num_inference_steps: usize,
    /// The steps each frame goes through: ascending indices, noisiest first.
    pub t_index_list: Vec<usize>,
    /// How one step leads to the next.
    pub method: Method,
    /// Guidance of all frames in flight.
    pub guidance: Guidance,
    /// What frames start from.
    pub mode: Mode,
    /// Which noise to use.
    pub seed: u64,
    /// How the noise that frames enter with changes.
    pub variation: Variation,
    /// Whether noise is added again between steps.
    pub add_noise: bool,
    /// The similarity filter, if it is on.
    pub similarity: Option<Similarity>,
    /// Share of the restyled picture in what is shown, in [0, 1]; the rest is the picture that came in.
    pub mix: f64,
}

impl Settings {
    /// What the U-Net calls of a stream come to that does this with groups of `frames`.
    pub fn calls(&self, frames: usize) -> Calls {
        let steps = self.t_index_list.len();
        let wants = |step: &usize| self.guidance.wants_negative_row(*step);
        let negative = (0..steps).filter(wants).count();
        Calls {
            steps,
            frames,
            rows: frames * (steps + negative),
        }
    }
}
