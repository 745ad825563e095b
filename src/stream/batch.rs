//! The stream batch: one U-Net call takes every slot one step further, each at its own step and with its own texts.

use super::Stream;
use super::contexts::Needs;
use super::guidance::{Guidance, Reference};
use super::schedule::Step;
use super::slot::{Progress, Slot};
use super::story::{self, Happening, Stepped};
use super::timing::Stage;
use crate::device::{Device, Update};
use crate::engine::{Denoise, Model};
use crate::error::{Error, Result};

/// What the U-Net gave for the slots under way, in their order.
struct Predictions<X> {
    /// With the prompt, for all of them.
    prompt: Vec<X>,
    /// With the negative prompt, for those that guidance wants it for.
    negative: Vec<X>,
}

impl<D: Device, M: Model<Tensor = D::Tensor>, T> Stream<D, M, T> {
    /// One step for every slot that is under way.
    pub(super) fn denoise(&mut self) -> Result<()> {
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
