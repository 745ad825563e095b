//! StreamDiffusion's stream (arXiv 2312.12491): pictures in, restyled pictures out, in order, `n·f − 1` frames later.
//!
//! Every U-Net call denoises all frames in flight at once, each at its own step (the stream batch). This file is the
//! algorithm: [`submit`](Stream::submit) gathers a group, the similarity filter skips it or it enters, and all slots advance.
//! How a group becomes noised latents is in `entry.rs`, a step of all slots in `batch.rs`, what else a stream is told in
//! `control.rs`. Numbers come from [`schedule`], [`guidance`] and [`noise`], arithmetic is a device's, neural networks are a
//! model's.

mod batch;
mod contexts;
mod control;
mod entry;
mod expected;
pub mod guidance;
mod morph;
pub mod noise;
pub mod schedule;
mod settings;
pub mod similarity;
mod slot;
mod story;
#[cfg(test)]
mod tests;
mod timing;
mod variation;

use std::collections::VecDeque;
use std::sync::Arc;

use contexts::Texts;
pub use contexts::{Conditioning, Contexts, Needs};
pub use control::Counters;
pub use expected::Expected;
pub use guidance::{CfgType, Guidance};
pub use morph::{Filler, Morph, Target};
pub use schedule::Method;
pub use settings::{Mode, Settings};
pub use similarity::Similarity;
pub use slot::Shown;
pub use story::{Happening, Listener, Stepped};
pub use timing::{Stage, StageTimes};
pub use variation::Variation;

pub use crate::device::Interpolation;

use crate::device::Device;
use crate::engine::Model;
use crate::error::Result;
use crate::model::SchedulerConfig;
use entry::{Entering, Group};
use noise::TorchGenerator;
use similarity::SimilarityFilter;
use slot::{Plan, Progress, Slot, Under, show};
use variation::Noises;

/// A running stream of frames of one size, on a device and with a model. `T` tags a frame on its way through.
pub struct Stream<D: Device, M: Model<Tensor = D::Tensor>, T> {
    device: D,
    model: Arc<M>,
    scheduler: SchedulerConfig,
    /// `[C, h, w]`.
    latent: [usize; 3],
    /// f, the frames that enter together.
    frame_buffer_size: usize,
    settings: Settings,
    /// The prompts in force, and those that frames under way came in with.
    texts: Texts<M>,
    plan: Arc<Plan<D::Tensor>>,
    /// Draws the noise that frames enter with, where it changes.
    noises: Noises<D::Tensor>,
    /// Draws the image encoder's samples, where the model asks for them; goes on where the noise maps stopped.
    posterior: TorchGenerator,
    filter: SimilarityFilter,
    /// Frames that wait for their group to be complete: picture, share of what is made of it, tag.
    group: Vec<Entering<D, T>>,
    /// Whether one of these shows something new.
    fresh: bool,
    /// Whether what makes pictures of frames has changed since the last group entered.
    changed: bool,
    /// Newest first.
    slots: VecDeque<Slot<D::Tensor, T>>,
    /// The group that entered last, as the similarity filter sees it.
    last_entered: Option<Arc<D::Tensor>>,
    /// The pictures of the group that left last.
    last_left: Vec<Arc<D::Tensor>>,
    counters: Counters,
    times: StageTimes,
    /// How alike the group that came in last and the one that had entered before were, if they were compared.
    similarity: Option<f32>,
    /// Who wants to hear of what happens.
    listener: Option<Listener<T>>,
}

impl<D: Device, M: Model<Tensor = D::Tensor>, T> Stream<D, M, T> {
    /// Takes in one picture `[1, 3, H, W]` in [-1, 1]; gives the pictures that are ready, in the order of their frames.
    pub fn submit(&mut self, picture: D::Tensor, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.submit_expected(Expected::new(picture), tag)
    }

    /// The same for a picture that was [expected](Self::expect).
    pub fn submit_expected(
        &mut self,
        expected: Expected<D>,
        tag: T,
    ) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.fresh = true;
        self.take_in(expected, tag)
    }

    /// Takes in a picture that is known to be the one before it once more. If that would give the same again, it is
    /// skipped as the similarity filter skips, but without being compared and without chance.
    pub fn submit_again(
        &mut self,
        expected: Expected<D>,
        tag: T,
    ) -> Result<Vec<Shown<D::Tensor, T>>> {
        // In larger groups the one before is not the one whose picture it would share.
        self.fresh |= self.frame_buffer_size > 1
            || self.changed
            || self.settings.variation != Variation::Fixed
            || self.settings.mode != Mode::ImageToImage;
        self.take_in(expected, tag)
    }

    fn take_in(&mut self, expected: Expected<D>, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.group.push(self.entering(expected, tag));
        if self.group.len() < self.frame_buffer_size {
            return Ok(Vec::new());
        }
        self.submit_group()
    }

    /// Finishes all frames in flight, an incomplete group included, and gives their pictures.
    pub fn drain(&mut self) -> Result<Vec<Shown<D::Tensor, T>>> {
        let mut shown = Vec::new();
        if !self.group.is_empty() {
            shown = self.submit_group()?;
        }
        while !self.slots.is_empty() {
            shown.extend(self.advance()?);
        }
        Ok(shown)
    }

    fn submit_group(&mut self) -> Result<Vec<Shown<D::Tensor, T>>> {
        let again = !std::mem::take(&mut self.fresh) && self.last_entered.is_some();
        let mut group = self.take_group()?;
        let count = group.tags.len() as u64;
        self.similarity = None;
        let skipped = again || self.resembles_last(&mut group)?;
        if let (Some(listener), Some(similarity)) = (&self.listener, self.similarity) {
            listener(Happening::Compared {
                frames: &group.tags,
                similarity,
                skipped,
            });
        }
        if skipped {
            let tags = group.tags;
            self.counters.skipped += count;
            // The slot that entered last is the newest one, if it is still in flight at all.
            match self.slots.front_mut() {
                Some(slot) => slot.shown_for.push(tags),
                None => return Ok(show(&self.last_left, vec![tags])),
            }
        } else {
            self.counters.processed += count;
            self.enter(group)?;
        }
        self.advance()
    }

    /// Whether the similarity filter skips this group.
    fn resembles_last(&mut self, group: &mut Group<D, T>) -> Result<bool> {
        let last = self.last_entered.as_ref().filter(|_| self.filters());
        // What was compared when it came holds if nothing has entered since.
        let early = (group.compared.take())
            .filter(|compared| last.is_some_and(|last| Arc::ptr_eq(last, &compared.last)));
        let compared = match (early, last) {
            (None, Some(last)) => self.compare(&group.pictures, last)?,
            (early, _) => early,
        };
        let (Some(settings), Some(compared)) = (self.settings.similarity, compared) else {
            self.filter.processed();
            return Ok(false);
        };
        let cosine = self.device.cosine(compared.comparison)?;
        self.similarity = Some(cosine);
        Ok(self.filter.skips(settings, cosine))
    }

    /// Brings a group to the noise of the first step.
    fn enter(&mut self, group: Group<D, T>) -> Result<()> {
        let Group {
            pictures,
            under,
            tags,
            ..
        } = group;
        let frames = tags.len();
        let plan = self.plan.clone();
        let (anchor, x) = match self.settings.mode {
            Mode::ImageToImage => {
                let anchor = self.encode(&pictures, frames)?;
                if let Some(listener) = &self.listener {
                    listener(Happening::Encoded {
                        frames: &tags,
                        took: self.times.latest(Stage::Encode),
                    });
                }
                let noise = self.entering_noise(frames)?;
                let noise = noise.as_ref().unwrap_or(&plan.noise[0]);
                let (a, b) = (plan.steps[0].a as f32, plan.steps[0].b as f32);
                let x = self.device.add_noise(a, &anchor, b, noise)?;
                (Some(anchor), x)
            }
            Mode::TextToImage => {
                let noise = match self.entering_noise(frames)? {
                    Some(noise) => noise,
                    None => self.device.stack(vec![plan.noise[0].clone(); frames])?,
                };
                (None, noise)
            }
        };
        self.slots.push_front(Slot {
            plan,
            text: self.texts.newest(),
            anchor,
            under,
            progress: Progress::Noisy { x, step: 0 },
            shown_for: vec![tags],
        });
        self.changed = false;
        // Frames that are restyled have nothing in common with those drawn from noise.
        self.last_entered = (self.settings.mode == Mode::ImageToImage).then_some(pictures);
        Ok(())
    }

    /// One step for every slot in flight, by one U-Net call; gives the pictures of the slots that are done.
    fn advance(&mut self) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.denoise()?;
        self.decode()?;
        let mut shown = Vec::new();
        while let Some(Progress::Done { .. }) = self.slots.back().map(|slot| &slot.progress) {
            let Some(slot) = self.slots.pop_back() else {
                break;
            };
            if let Progress::Done { pictures } = slot.progress {
                shown.extend(show(&pictures, slot.shown_for));
                self.last_left = pictures;
            }
        }
        Ok(shown)
    }

    /// Turns slots that are through their last step into pictures.
    fn decode(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            if let Progress::Noisy { x, step } = &slot.progress
                && *step == slot.plan.steps.len()
            {
                let decode = || self.model.decode(x);
                let mut pictures = self.times.measure(&self.device, Stage::Decode, decode)?;
                if let Some(Under {
                    pictures: under,
                    shares,
                }) = slot.under.take()
                {
                    pictures = self.device.blend(&shares, &pictures, &under)?;
                }
                if let Some(listener) = &self.listener {
                    listener(Happening::Decoded {
                        frames: story::frames(slot),
                        took: self.times.latest(Stage::Decode),
                    });
                }
                let pictures = self.device.unstack(pictures);
                slot.progress = Progress::Done {
                    pictures: pictures.into_iter().map(Arc::new).collect(),
                };
            }
        }
        Ok(())
    }

    /// Fills a stream that holds nothing with copies of a picture, so that the next one submitted gives a picture at
    /// once. The similarity filter is not asked.
    pub fn prime(&mut self, Expected { picture, .. }: &Expected<D>, tag: &T) -> Result<()>
    where
        T: Clone,
    {
        for _ in 0..self.delay() {
            let copy = Expected::new(picture.clone());
            self.group.push(self.entering(copy, tag.clone()));
            if self.group.len() == self.frame_buffer_size {
                let group = self.take_group()?;
                self.enter(group)?;
                self.advance()?;
            }
        }
        Ok(())
    }
}
