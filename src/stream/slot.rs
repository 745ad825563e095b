//! A slot: a group of frames that is part way through its steps, with everything that travels with it.

use std::sync::Arc;

use super::schedule::Step;

/// The steps a slot goes through and the noise of each: fixed when the slot enters, so a live change of the step list
/// or the seed never disturbs frames that are already under way.
#[derive(Debug)]
pub struct Plan<X> {
    /// The steps, noisiest first; never empty.
    pub steps: Vec<Step>,
    /// One noise map `[1, C, h, w]` for each step; shared by plans of one seed and number of steps.
    pub noise: Arc<[X]>,
}

/// Where a slot stands.
#[derive(Debug)]
pub enum Progress<X> {
    /// The latent, noised for the step with this index, which is the next one to run.
    Noisy { x: X, step: usize },
    /// All steps are done; one picture `[1, 3, H, W]` per frame, waiting for older slots to leave first.
    Done { pictures: Vec<Arc<X>> },
}

impl<X> Progress<X> {
    /// The step to run next, unless all are done.
    pub fn step(&self) -> Option<usize> {
        match self {
            Self::Noisy { step, .. } => Some(*step),
            Self::Done { .. } => None,
        }
    }
}

/// The pictures that came in for a slot, and how much of them is to be seen.
#[derive(Debug)]
pub struct Under<X> {
    /// `[f, 3, H, W]` in [-1, 1].
    pub pictures: Arc<X>,
    /// The share of the restyled picture in each frame, in [0, 1].
    pub shares: Vec<f32>,
}

/// `f` frames that entered together.
#[derive(Debug)]
pub struct Slot<X, T> {
    /// Its steps and their noise.
    pub plan: Arc<Plan<X>>,
    /// The number of the prompts it goes by.
    pub text: u64,
    /// What residual guidance pushes away from: the frames' clean latents, or their estimates under the negative prompt.
    /// Frames that started from noise alone have none before their first step.
    pub anchor: Option<X>,
    /// What its pictures are laid over, where they are not shown alone.
    pub under: Option<Under<X>>,
    /// How far it has come.
    pub progress: Progress<X>,
    /// The tags of the groups of frames that its pictures are shown for: its own, then those that the similarity filter
    /// found to resemble it.
    pub shown_for: Vec<Vec<T>>,
}

/// A picture for one input frame.
#[derive(Debug, Clone)]
pub struct Shown<X, T> {
    /// The restyled picture `[1, 3, H, W]`, nominally in [-1, 1]; the same memory for frames that share it.
    pub picture: Arc<X>,
    /// The input frame's tag.
    pub tag: T,
}

/// Pairs each group's tags with the pictures they are shown with.
pub fn show<X, T>(pictures: &[Arc<X>], shown_for: Vec<Vec<T>>) -> Vec<Shown<X, T>> {
    shown_for
        .into_iter()
        .flat_map(|tags| tags.into_iter().zip(pictures))
        .map(|(tag, picture)| Shown {
            picture: picture.clone(),
            tag,
        })
        .collect()
}
