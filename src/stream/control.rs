//! What a stream is told and asked for, beside frames.

use super::contexts::Texts;
use super::noise::TorchGenerator;
use super::schedule::{Step, schedule};
use super::similarity::SimilarityFilter;
use super::slot::Plan;
use super::variation::Noises;
use super::{Conditioning, Listener, Settings, StageTimes, Stream};
use crate::device::Device;
use crate::engine::Model;
use crate::error::Result;
use crate::model::SchedulerConfig;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many frames went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that entered the U-Net.
    pub processed: u64,
    /// Frames that the similarity filter skipped.
    pub skipped: u64,
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
}

/// The steps that `settings` ask for.
fn steps(scheduler: &SchedulerConfig, settings: &Settings) -> Result<Vec<Step>> {
    schedule(
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
