//! StreamDiffusion's stream (arXiv 2312.12491): pictures in, restyled pictures out, in order, `n·f − 1` frames later.
//!
//! Every U-Net call denoises all frames in flight at once, each at its own step (the stream batch). This file is the
//! algorithm; its numbers come from [`schedule`], [`guidance`] and [`noise`], its arithmetic is a device's, its neural
//! networks are a model's.

mod contexts;
pub mod guidance;
pub mod noise;
pub mod schedule;
pub mod similarity;
mod slot;
#[cfg(test)]
mod tests;
mod timing;
mod variation;

use std::collections::VecDeque;
use std::sync::Arc;

pub use contexts::{Contexts, Needs};
pub use guidance::{CfgType, Guidance};
pub use schedule::Method;
pub use similarity::Similarity;
pub use slot::Shown;
pub use timing::{Stage, StageTimes};
pub use variation::Variation;

use crate::device::{Device, Update};
use crate::engine::{Calls, Denoise, Model};
use crate::error::{Error, Result};
use crate::model::SchedulerConfig;
use guidance::Reference;
use noise::TorchGenerator;
use schedule::Step;
use similarity::SimilarityFilter;
use slot::{Plan, Progress, Slot, show};
use variation::Noises;

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

/// The prompts in force, encoded in the same number of chunks, and what the U-Net needs for rows with them.
pub struct Conditioning<M: Model> {
    /// The prompt.
    pub prompt: Contexts<M>,
    /// The negative prompt.
    pub negative: Contexts<M>,
}

impl<M: Model> Clone for Conditioning<M> {
    fn clone(&self) -> Self {
        Self {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
        }
    }
}

impl<M: Model> Conditioning<M> {
    /// Makes ready what `needs` names.
    pub fn prepare(&mut self, model: &M, needs: &Needs) -> Result<()> {
        self.prompt.prepare(model, needs)?;
        match needs.negative {
            true => self.negative.prepare(model, needs),
            false => Ok(()),
        }
    }
}

/// What the U-Net gave for the slots under way, in their order.
struct Predictions<X> {
    /// With the prompt, for all of them.
    prompt: Vec<X>,
    /// With the negative prompt, for those that guidance wants it for.
    negative: Vec<X>,
}

/// How many frames went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that entered the U-Net.
    pub processed: u64,
    /// Frames that the similarity filter skipped.
    pub skipped: u64,
}

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
    conditioning: Conditioning<M>,
    plan: Arc<Plan<D::Tensor>>,
    /// Draws the noise that frames enter with, where it changes.
    noises: Noises,
    /// Draws the image encoder's samples, where the model asks for them; goes on where the noise maps stopped.
    posterior: TorchGenerator,
    filter: SimilarityFilter,
    /// Frames that wait for their group to be complete.
    group: Vec<(D::Tensor, T)>,
    /// Newest first.
    slots: VecDeque<Slot<D::Tensor, T>>,
    /// The group that entered last, as the similarity filter sees it.
    last_entered: Option<D::Tensor>,
    /// The pictures of the group that left last.
    last_left: Vec<Arc<D::Tensor>>,
    counters: Counters,
    times: StageTimes,
}

impl<D: Device, M: Model<Tensor = D::Tensor>, T> Stream<D, M, T> {
    /// A stream of pictures of `width` × `height` pixels, which must be what the model's limits allow, entering in
    /// groups of `frame_buffer_size` ≥ 1.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the property at fault.
    pub fn new(
        device: D,
        model: Arc<M>,
        scheduler: SchedulerConfig,
        (width, height): (usize, usize),
        frame_buffer_size: usize,
        settings: Settings,
        conditioning: Conditioning<M>,
    ) -> Result<Self> {
        let limits = model.limits();
        limits.check_size(width, height)?;
        let latent = [
            limits.latent_channels,
            height / limits.latent_scale,
            width / limits.latent_scale,
        ];
        let steps = steps(&scheduler, &settings)?;
        limits.check_calls(settings.calls(frame_buffer_size.max(1)))?;
        let (noise, posterior) = noise_maps(&device, settings.seed, steps.len(), latent)?;
        Ok(Self {
            filter: SimilarityFilter::new(settings.seed),
            noises: Noises::new(settings.variation, settings.seed),
            conditioning,
            device,
            model,
            scheduler,
            latent,
            frame_buffer_size: frame_buffer_size.max(1),
            settings,
            plan: Arc::new(Plan { steps, noise }),
            posterior,
            group: Vec::new(),
            slots: VecDeque::new(),
            last_entered: None,
            last_left: Vec::new(),
            counters: Counters::default(),
            times: StageTimes::default(),
        })
    }

    /// Puts new settings in force from the next frame on. Frames in flight keep their steps and noise and take the new
    /// guidance. On an error the old settings stay.
    pub fn configure(&mut self, settings: &Settings) -> Result<()> {
        let old = &self.settings;
        if old == settings {
            return Ok(());
        }
        let steps = steps(&self.scheduler, settings)?;
        let calls = settings.calls(self.frame_buffer_size);
        self.model.limits().check_calls(calls)?;
        let mut noise = self.plan.noise.clone();
        if old.seed != settings.seed || steps.len() != noise.len() {
            (noise, self.posterior) =
                noise_maps(&self.device, settings.seed, steps.len(), self.latent)?;
        }
        if old.seed != settings.seed {
            self.filter = SimilarityFilter::new(settings.seed);
        }
        self.noises.set(settings.variation, settings.seed);
        self.plan = Arc::new(Plan { steps, noise });
        self.settings = settings.clone();
        Ok(())
    }

    /// Puts new prompts in force for all frames in flight and to come.
    pub fn set_conditioning(&mut self, conditioning: Conditioning<M>) {
        self.conditioning = conditioning;
    }

    /// Takes in one picture `[1, 3, H, W]` in [-1, 1]; gives the pictures that are ready, in the order of their frames.
    pub fn submit(&mut self, picture: D::Tensor, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.group.push((picture, tag));
        if self.group.len() < self.frame_buffer_size {
            return Ok(Vec::new());
        }
        self.submit_group()
    }

    /// Fills a stream that holds nothing with copies of `picture`, so that the next one submitted gives a picture at
    /// once. The similarity filter is not asked.
    pub fn prime(&mut self, picture: &D::Tensor, tag: &T) -> Result<()>
    where
        T: Clone,
    {
        for _ in 0..self.delay() {
            self.group.push((picture.clone(), tag.clone()));
            if self.group.len() == self.frame_buffer_size {
                let (pictures, tags) = self.take_group()?;
                self.enter(pictures, tags)?;
                self.advance()?;
            }
        }
        Ok(())
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

    /// Forgets all frames, as after a seek. Settings and prompts stay.
    pub fn reset(&mut self) {
        self.group.clear();
        self.slots.clear();
        self.last_entered = None;
        self.last_left.clear();
        self.filter.processed();
    }

    /// Frames between an input and its output when each frame is processed: n·f − 1.
    pub fn delay(&self) -> usize {
        self.plan.steps.len() * self.frame_buffer_size - 1
    }

    /// How many frames went which way since the stream began.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long the stages took lately.
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    /// The frames that wait, as one tensor `[k, 3, H, W]`, and their tags.
    fn take_group(&mut self) -> Result<(D::Tensor, Vec<T>)> {
        let (pictures, tags): (Vec<_>, _) = self.group.drain(..).unzip();
        Ok((self.device.stack(pictures)?, tags))
    }

    fn submit_group(&mut self) -> Result<Vec<Shown<D::Tensor, T>>> {
        let (pictures, tags) = self.take_group()?;
        let count = tags.len() as u64;
        if self.resembles_last(&pictures)? {
            self.counters.skipped += count;
            // The slot that entered last is the newest one, if it is still in flight at all.
            match self.slots.front_mut() {
                Some(slot) => slot.shown_for.push(tags),
                None => return Ok(show(&self.last_left, vec![tags])),
            }
        } else {
            self.counters.processed += count;
            self.enter(pictures, tags)?;
        }
        self.advance()
    }

    fn resembles_last(&mut self, pictures: &D::Tensor) -> Result<bool> {
        Ok(match (self.settings.similarity, &self.last_entered) {
            // Without pictures to start from, those that come in say nothing about those that come out.
            (Some(settings), Some(last))
                if self.settings.mode == Mode::ImageToImage
                    && self.device.same_shape(pictures, last) =>
            {
                let cosine = self.device.cosine(pictures, last)?;
                self.filter.skips(settings, cosine)
            }
            _ => {
                self.filter.processed();
                false
            }
        })
    }

    /// Brings a group to the noise of the first step.
    fn enter(&mut self, pictures: D::Tensor, tags: Vec<T>) -> Result<()> {
        let frames = tags.len();
        let plan = self.plan.clone();
        let (anchor, x) = match self.settings.mode {
            Mode::ImageToImage => {
                let anchor = self.encode(&pictures, frames)?;
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
            anchor,
            progress: Progress::Noisy { x, step: 0 },
            shown_for: vec![tags],
        });
        // Frames that are restyled have nothing in common with those drawn from noise.
        self.last_entered = (self.settings.mode == Mode::ImageToImage).then_some(pictures);
        Ok(())
    }

    /// The clean latents of `frames` pictures.
    fn encode(&mut self, pictures: &D::Tensor, frames: usize) -> Result<D::Tensor> {
        let sample = match self.model.limits().samples_posterior {
            true => {
                let [c, h, w] = self.latent;
                let noise = self.posterior.randn(frames * c * h * w);
                Some(self.device.upload(&[frames, c, h, w], &noise)?)
            }
            false => None,
        };
        self.times.measure(&self.device, Stage::Encode, || {
            self.model.encode(pictures, sample.as_ref())
        })
    }

    /// The noise that the next `frames` frames enter with, where it is not the plan's.
    fn entering_noise(&mut self, frames: usize) -> Result<Option<D::Tensor>> {
        let [c, h, w] = self.latent;
        let maps: Option<Vec<_>> = (0..frames).map(|_| self.noises.next(c * h * w)).collect();
        maps.map(|maps| self.device.upload(&[frames, c, h, w], &maps.concat()))
            .transpose()
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

    /// What the rows to come are run with: new prompts are best prepared for it before they are put in force.
    pub fn needs(&self) -> Needs {
        let under_way = self.slots.iter().filter_map(|slot| match slot.progress {
            Progress::Noisy { step, .. } => slot.plan.steps.get(step..),
            Progress::Done { .. } => None,
        });
        let steps = under_way.chain([&self.plan.steps[..]]).flatten();
        let mut timesteps: Vec<u32> = steps.map(|step| step.timestep).collect();
        timesteps.sort_unstable();
        timesteps.dedup();
        Needs {
            timesteps,
            size: (self.latent[1], self.latent[2]),
            negative: self.settings.guidance.uses_negative_prompt(),
        }
    }

    /// The stream batch: one row group for each slot, and those that guidance adds.
    fn predict(&mut self) -> Result<Predictions<D::Tensor>> {
        let needs = self.needs();
        let guidance = self.settings.guidance;
        let Self {
            device,
            model,
            conditioning,
            slots,
            times,
            ..
        } = self;
        times.measure(device, Stage::Denoise, || {
            conditioning.prepare(model, &needs)?;
            let mut rows = Vec::new();
            let mut negative_rows = Vec::new();
            for slot in slots {
                let Progress::Noisy { x: sample, step } = &slot.progress else {
                    continue;
                };
                let timestep = slot.plan.steps[*step].timestep;
                let context = conditioning.prompt.at(timestep)?;
                rows.push(Denoise { sample, context });
                if guidance.wants_negative_row(*step) {
                    let context = conditioning.negative.at(timestep)?;
                    negative_rows.push(Denoise { sample, context });
                }
            }
            let count = rows.len();
            rows.append(&mut negative_rows);
            let mut predictions = model.denoise(&rows)?;
            if predictions.len() != rows.len() {
                return Err(Error::engine("unet", "gave fewer rows than it was given"));
            }
            Ok(Predictions {
                negative: predictions.split_off(count),
                prompt: predictions,
            })
        })
    }

    /// One step for every slot that is under way.
    fn denoise(&mut self) -> Result<()> {
        let under_way = |slot: &Slot<_, _>| matches!(slot.progress, Progress::Noisy { .. });
        if !self.slots.iter().any(under_way) {
            return Ok(());
        }
        let (guidance, add_noise) = (self.settings.guidance, self.settings.add_noise);
        let Predictions { prompt, negative } = self.predict()?;
        let mut negatives = negative.into_iter();
        let slots = self.slots.iter_mut().filter(|slot| under_way(slot));
        let mut rows: Vec<_> = slots
            .zip(prompt)
            .map(|(slot, prediction)| {
                let negative =
                    (slot.progress.step()).is_some_and(|j| guidance.wants_negative_row(j));
                (
                    slot,
                    prediction,
                    negative.then(|| negatives.next()).flatten(),
                )
            })
            .collect();
        if guidance.anchors_on_negative() {
            self.device.step(negative_anchors(&mut rows))?;
        }
        let updates = rows.iter_mut().filter_map(|(slot, prediction, negative)| {
            let Slot {
                plan,
                anchor,
                progress: Progress::Noisy { x, step },
                ..
            } = slot
            else {
                return None;
            };
            let current = &plan.steps[*step];
            let (guidance, reference) = match guidance.reference() {
                Reference::None => (guidance, None),
                Reference::NegativePrediction => (guidance, negative.as_ref()),
                Reference::Anchor => match anchor {
                    Some(anchor) => (guidance, Some(&*anchor)),
                    // A frame that started from noise alone has nothing of its own to be pushed away from.
                    None => (guidance.off(), None),
                },
            };
            *step += 1;
            Some(Update {
                k: guidance.coefficients(current, add_noise),
                x,
                prediction,
                reference,
                noise: plan.noise.get(*step).filter(|_| add_noise),
            })
        });
        self.device.step(updates.collect())
    }

    /// Turns slots that are through their last step into pictures.
    fn decode(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            if let Progress::Noisy { x, step } = &slot.progress
                && *step == slot.plan.steps.len()
            {
                let decode = || self.model.decode(x);
                let pictures = self.times.measure(&self.device, Stage::Decode, decode)?;
                let pictures = self.device.unstack(pictures);
                slot.progress = Progress::Done {
                    pictures: pictures.into_iter().map(Arc::new).collect(),
                };
            }
        }
        Ok(())
    }
}

/// A slot under way, and what the U-Net gave for it: with the prompt, and with the negative one where guidance wants that.
type Row<'a, X, T> = (&'a mut Slot<X, T>, X, Option<X>);

/// Replaces the anchors of slots that had a row with the negative prompt by what that row makes of their latents.
fn negative_anchors<'a, X: Clone, T>(rows: &'a mut [Row<'_, X, T>]) -> Vec<Update<'a, X>> {
    let updates = rows.iter_mut().filter_map(|(slot, _, negative)| {
        let Slot {
            plan,
            anchor,
            progress: Progress::Noisy { x, step },
            ..
        } = &mut **slot
        else {
            return None;
        };
        let prediction = negative.as_ref()?;
        Some(Update {
            k: Guidance::negative_anchor(&plan.steps[*step]),
            x: anchor.insert(x.clone()),
            prediction,
            reference: None,
            noise: None,
        })
    });
    updates.collect()
}

/// The steps that `settings` ask for.
fn steps(scheduler: &SchedulerConfig, settings: &Settings) -> Result<Vec<Step>> {
    schedule::schedule(
        scheduler,
        settings.method,
        settings.num_inference_steps,
        &settings.t_index_list,
    )
}

/// One noise map for each of `count` steps, and the generator that drew them.
fn noise_maps<D: Device>(
    device: &D,
    seed: u64,
    count: usize,
    [c, h, w]: [usize; 3],
) -> Result<(Arc<[D::Tensor]>, TorchGenerator)> {
    let mut generator = TorchGenerator::new(seed);
    let map = c * h * w;
    let maps = generator
        .randn(count * map)
        .chunks(map)
        .map(|map| device.upload(&[1, c, h, w], map))
        .collect::<Result<_>>()?;
    Ok((maps, generator))
}
