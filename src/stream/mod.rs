//! StreamDiffusion's stream (arXiv 2312.12491): pictures in, restyled pictures out, in order, `n·f − 1` frames later.
//!
//! Every U-Net call denoises all frames in flight at once, each at its own step (the stream batch). This file is the
//! algorithm; its numbers come from [`schedule`], [`guidance`] and [`noise`], its arithmetic is a device's, its neural
//! networks are a model's.

mod contexts;
pub mod guidance;
mod interpolation;
mod morph;
pub mod noise;
pub mod schedule;
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
pub use guidance::{CfgType, Guidance};
pub use interpolation::Interpolation;
pub use morph::{Filler, Morph, Target};
pub use schedule::Method;
pub use similarity::Similarity;
pub use slot::Shown;
pub use story::{Happening, Listener, Stepped};
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
use slot::{Plan, Progress, Slot, Under, show};
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

/// A frame that waits for its group to be complete.
struct Entering<X, T> {
    /// `[1, 3, H, W]`.
    picture: X,
    /// The share of what is made of it in what is shown.
    share: f32,
    tag: T,
}

/// Frames that enter together.
struct Group<X, T> {
    /// `[k, 3, H, W]`.
    pictures: Arc<X>,
    /// The same, if any of them is to be seen.
    under: Option<Under<X>>,
    tags: Vec<T>,
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
    /// The prompts in force, and those that frames under way came in with.
    texts: Texts<M>,
    plan: Arc<Plan<D::Tensor>>,
    /// Draws the noise that frames enter with, where it changes.
    noises: Noises<D::Tensor>,
    /// Draws the image encoder's samples, where the model asks for them; goes on where the noise maps stopped.
    posterior: TorchGenerator,
    filter: SimilarityFilter,
    /// Frames that wait for their group to be complete: picture, share of what is made of it, tag.
    group: Vec<Entering<D::Tensor, T>>,
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
            texts: Texts::new(conditioning),
            device,
            model,
            scheduler,
            latent,
            frame_buffer_size: frame_buffer_size.max(1),
            settings,
            plan: Arc::new(Plan { steps, noise }),
            posterior,
            group: Vec::new(),
            fresh: false,
            changed: false,
            slots: VecDeque::new(),
            last_entered: None,
            last_left: Vec::new(),
            counters: Counters::default(),
            times: StageTimes::default(),
            similarity: None,
            listener: None,
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
        self.changed = true;
        Ok(())
    }

    /// Puts new prompts in force from the next frame on, which the similarity filter does not skip. Frames in flight keep
    /// those they came in with.
    pub fn set_conditioning(&mut self, conditioning: Conditioning<M>) {
        self.texts.set(conditioning);
        self.last_entered = None;
        self.changed = true;
    }

    /// Takes in one picture `[1, 3, H, W]` in [-1, 1]; gives the pictures that are ready, in the order of their frames.
    pub fn submit(&mut self, picture: D::Tensor, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.fresh = true;
        self.take_in(picture, tag)
    }

    /// Takes in a picture that is known to be the one before it once more. If that would give the same again, it is
    /// skipped as the similarity filter skips, but without being compared and without chance.
    pub fn submit_again(&mut self, picture: D::Tensor, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        // In larger groups the one before is not the one whose picture it would share.
        self.fresh |= self.frame_buffer_size > 1
            || self.changed
            || self.settings.variation != Variation::Fixed
            || self.settings.mode != Mode::ImageToImage;
        self.take_in(picture, tag)
    }

    fn take_in(&mut self, picture: D::Tensor, tag: T) -> Result<Vec<Shown<D::Tensor, T>>> {
        self.group.push(self.entering(picture, tag));
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
            self.group.push(self.entering(picture.clone(), tag.clone()));
            if self.group.len() == self.frame_buffer_size {
                let group = self.take_group()?;
                self.enter(group)?;
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
        self.fresh = false;
        self.slots.clear();
        self.last_entered = None;
        self.last_left.clear();
        self.similarity = None;
        self.filter.processed();
    }

    /// Forgets all that frames have left behind, as if the stream began: frames, where noise that changes had got to, and the
    /// filter's dice. Settings, prompts and counts stay.
    pub fn renew(&mut self) {
        self.reset();
        let Settings {
            seed, variation, ..
        } = self.settings;
        self.filter = SimilarityFilter::new(seed);
        self.noises = Noises::new(variation, seed);
        // It goes on where the noise maps stop.
        self.posterior = TorchGenerator::new(seed);
        let [c, h, w] = self.latent;
        self.posterior.randn(self.plan.noise.len() * c * h * w);
    }

    /// Has `listener` hear of what happens from now on; `None`, which costs nothing: nobody.
    pub fn listen(&mut self, listener: Option<Listener<T>>) {
        self.listener = listener;
    }

    /// How alike the group that came in last and the one that had entered before are (the cosine of the two); `None` if they
    /// were not compared.
    pub fn similarity(&self) -> Option<f32> {
        self.similarity
    }

    /// Frames between an input and its output when each frame is processed: n·f − 1.
    pub fn delay(&self) -> usize {
        self.plan.steps.len() * self.frame_buffer_size - 1
    }

    /// Frames that enter together: f.
    pub fn frame_buffer_size(&self) -> usize {
        self.frame_buffer_size
    }

    /// How many frames went which way since the stream began.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long the stages took lately.
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    /// A frame as it is now to enter.
    fn entering(&self, picture: D::Tensor, tag: T) -> Entering<D::Tensor, T> {
        let share = self.settings.mix.clamp(0.0, 1.0) as f32;
        Entering {
            picture,
            share,
            tag,
        }
    }

    /// The frames that wait.
    fn take_group(&mut self) -> Result<Group<D::Tensor, T>> {
        let mut pictures = Vec::with_capacity(self.group.len());
        let mut shares = Vec::with_capacity(self.group.len());
        let mut tags = Vec::with_capacity(self.group.len());
        for frame in self.group.drain(..) {
            pictures.push(frame.picture);
            shares.push(frame.share);
            tags.push(frame.tag);
        }
        let pictures = Arc::new(self.device.stack(pictures)?);
        Ok(Group {
            under: (shares.iter().any(|share| *share < 1.0)).then(|| Under {
                pictures: pictures.clone(),
                shares,
            }),
            pictures,
            tags,
        })
    }

    fn submit_group(&mut self) -> Result<Vec<Shown<D::Tensor, T>>> {
        let again = !std::mem::take(&mut self.fresh) && self.last_entered.is_some();
        let group = self.take_group()?;
        let count = group.tags.len() as u64;
        let skipped = again || self.resembles_last(&group.pictures)?;
        if let (Some(listener), Some(similarity), false) = (&self.listener, self.similarity, again)
        {
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

    fn resembles_last(&mut self, pictures: &D::Tensor) -> Result<bool> {
        self.similarity = None;
        Ok(match (self.settings.similarity, &self.last_entered) {
            // Without pictures to start from, those that come in say nothing about those that come out.
            (Some(settings), Some(last))
                if self.settings.mode == Mode::ImageToImage
                    && self.device.same_shape(pictures, last) =>
            {
                let cosine = self.device.cosine(pictures, last)?;
                self.similarity = Some(cosine);
                self.filter.skips(settings, cosine)
            }
            _ => {
                self.filter.processed();
                false
            }
        })
    }

    /// Brings a group to the noise of the first step.
    fn enter(&mut self, group: Group<D::Tensor, T>) -> Result<()> {
        let Group {
            pictures,
            under,
            tags,
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
        let mut next = || self.noises.next(&self.device, &[1, c, h, w]);
        let maps = (0..frames)
            .map(|_| next().transpose())
            .collect::<Option<Result<Vec<_>>>>();
        maps.map(|maps| self.device.stack(maps?)).transpose()
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

    /// What the rows of frames to come are run with: new prompts are best prepared for it before they are put in force.
    pub fn needs(&self) -> Needs {
        self.needs_of(self.plan.steps.iter())
    }

    fn needs_of<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> Needs {
        let mut timesteps: Vec<u32> = steps.map(|step| step.timestep).collect();
        timesteps.sort_unstable();
        timesteps.dedup();
        Needs {
            timesteps,
            size: (self.latent[1], self.latent[2]),
            negative: self.settings.guidance.uses_negative_prompt(),
        }
    }

    /// What the slots under way need of the texts they came in with, and those that come next of the newest one.
    fn needs_by_text(&mut self) -> Vec<(u64, Needs)> {
        let under_way = |slot: &Slot<_, _>| slot.progress.step().is_some();
        let slots = &self.slots;
        (self.texts).keep(|text| {
            slots
                .iter()
                .any(|slot| slot.text == text && under_way(slot))
        });
        let needs = |text| {
            let slots = self.slots.iter().filter(|slot| slot.text == text);
            let steps = slots.filter_map(|slot| slot.plan.steps.get(slot.progress.step()?..));
            let to_come = (text == self.texts.newest()).then_some(&self.plan.steps[..]);
            (text, self.needs_of(steps.chain(to_come).flatten()))
        };
        self.texts.all().map(needs).collect()
    }

    /// The stream batch: one row group for each slot, and those that guidance adds.
    fn predict(&mut self) -> Result<Predictions<D::Tensor>> {
        let needs = self.needs_by_text();
        let guidance = self.settings.guidance;
        let Self {
            device,
            model,
            texts,
            slots,
            times,
            ..
        } = self;
        times.measure(device, Stage::Denoise, || {
            for (text, needs) in &needs {
                texts.prepare(*text, model, needs)?;
            }
            // With the length of their texts.
            let mut rows = Vec::new();
            let mut negative_rows = Vec::new();
            for slot in slots {
                let Progress::Noisy { x: sample, step } = &slot.progress else {
                    continue;
                };
                let timestep = slot.plan.steps[*step].timestep;
                let conditioning = texts.get(slot.text)?;
                let length = conditioning.prompt.tokens();
                let context = conditioning.prompt.at(timestep)?;
                rows.push((length, Denoise { sample, context }));
                if guidance.wants_negative_row(*step) {
                    let context = conditioning.negative.at(timestep)?;
                    negative_rows.push((length, Denoise { sample, context }));
                }
            }
            let count = rows.len();
            rows.append(&mut negative_rows);
            let mut predictions = denoise_by_length(&**model, rows)?;
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
        if let Some(listener) = &self.listener {
            listener(Happening::Stepped {
                steps: self.slots.iter().filter_map(stepped).collect(),
                rows: prompt.len() + negative.len(),
                took: self.times.latest(Stage::Denoise),
            });
        }
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
}

/// The step that `slot` has just taken, if it is under way.
fn stepped<X, T>(slot: &Slot<X, T>) -> Option<Stepped<'_, T>> {
    let step = slot.progress.step()?;
    Some(Stepped {
        frames: story::frames(slot),
        step: step + 1,
        of: slot.plan.steps.len(),
        timestep: slot.plan.steps[step].timestep,
    })
}

/// A slot under way, and what the U-Net gave for it: with the prompt, and with the negative one where guidance wants that.
type Row<'a, X, T> = (&'a mut Slot<X, T>, X, Option<X>);

/// One U-Net call for each length of texts among `rows`, as those of one call must agree in it: one as a rule, more while
/// frames are under way that came in with a prompt in another number of chunks. What it gives for each row, in their order.
fn denoise_by_length<M: Model>(
    model: &M,
    mut rows: Vec<(usize, Denoise<'_, M>)>,
) -> Result<Vec<M::Tensor>> {
    let mut predictions: Vec<Option<M::Tensor>> = rows.iter().map(|_| None).collect();
    let mut places: Vec<usize> = (0..rows.len()).collect();
    while let Some(&(length, _)) = rows.first() {
        let (now, later): (Vec<_>, Vec<_>) = places
            .into_iter()
            .zip(rows)
            .partition(|(_, row)| row.0 == length);
        let (at, call): (Vec<_>, Vec<_>) = now.into_iter().map(|(at, (_, row))| (at, row)).unzip();
        let made = model.denoise(&call)?;
        if made.len() != call.len() {
            return Err(Error::engine("unet", "gave fewer rows than it was given"));
        }
        for (at, made) in at.into_iter().zip(made) {
            predictions[at] = Some(made);
        }
        (places, rows) = later.into_iter().unzip();
    }
    Ok(predictions.into_iter().flatten().collect())
}

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
