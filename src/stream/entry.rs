//! How frames enter: in groups, as noised latents.

use std::sync::Arc;

use super::expected::{Compared, Expected};
use super::slot::Under;
use super::{Stage, Stream};
use crate::device::Device;
use crate::engine::Model;
use crate::error::Result;

/// A frame that waits for its group to be complete.
pub(super) struct Entering<D: Device, T> {
    expected: Expected<D>,
    /// The share of what is made of it in what is shown.
    share: f32,
    tag: T,
}

/// Frames that enter together.
pub(super) struct Group<D: Device, T> {
    /// `[k, 3, H, W]`.
    pub(super) pictures: Arc<D::Tensor>,
    /// The same, if any of them is to be seen.
    pub(super) under: Option<Under<D::Tensor>>,
    /// How alike they are to those that had entered last when they came, if they were compared then.
    pub(super) compared: Option<Compared<D>>,
    pub(super) tags: Vec<T>,
}

impl<D: Device, M: Model<Tensor = D::Tensor>, T> Stream<D, M, T> {
    /// A frame as it is now to enter.
    pub(super) fn entering(&self, expected: Expected<D>, tag: T) -> Entering<D, T> {
        let share = self.settings.mix.clamp(0.0, 1.0) as f32;
        Entering {
            expected,
            share,
            tag,
        }
    }

    /// The frames that wait.
    pub(super) fn take_group(&mut self) -> Result<Group<D, T>> {
        let mut pictures = Vec::with_capacity(self.group.len());
        let mut shares = Vec::with_capacity(self.group.len());
        let mut tags = Vec::with_capacity(self.group.len());
        let mut compared = None;
        for frame in self.group.drain(..) {
            pictures.push(frame.expected.picture);
            // Of larger groups none is compared alone.
            compared = frame.expected.compared;
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
            compared,
            tags,
        })
    }

    /// The clean latents of `frames` pictures.
    pub(super) fn encode(&mut self, pictures: &D::Tensor, frames: usize) -> Result<D::Tensor> {
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
    pub(super) fn entering_noise(&mut self, frames: usize) -> Result<Option<D::Tensor>> {
        let [c, h, w] = self.latent;
        let mut next = || self.noises.next(&self.device, &[1, c, h, w]);
        let maps = (0..frames)
            .map(|_| next().transpose())
            .collect::<Option<Result<Vec<_>>>>();
        maps.map(|maps| self.device.stack(maps?)).transpose()
    }
}
