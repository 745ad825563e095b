//! What the user asks for, and what it comes to with a given model.

use std::path::PathBuf;

use crate::engine::Limits;
use crate::error::{Error, Result};
use crate::model::{ConsistencyMethod, Manifest, ModelFolder};
use crate::stream::schedule::{schedule, spread_indices};
use crate::stream::{self, CfgType, Guidance, Interpolation, Method, Similarity, Variation};

use super::{
    Backend, BuildEngines, LatePolicy, Mode, Noise, PromptInterpolation, Scheduler, Timing,
    WhileLoading,
};

/// Values for what neither the user nor the model folder says; those of the published pipeline where it has one.
pub mod default {
    use crate::stream::{CfgType, Method};

    pub const DEVICE_ID: i32 = -1;
    pub const STEPS: u32 = 2;
    pub const STRENGTH: f64 = 0.36;
    pub const NUM_INFERENCE_STEPS: u32 = 50;
    pub const GUIDANCE_SCALE: f64 = 1.2;
    pub const DELTA: f64 = 1.0;
    pub const CFG_TYPE: CfgType = CfgType::SelfNegative;
    pub const ETA: f64 = Method::DEFAULT_ETA;
    pub const SEED: u64 = 2;
    pub const NOISE_WALK_FRAMES: u32 = 30;
    pub const ADD_NOISE: bool = true;
    pub const FRAME_BUFFER_SIZE: u32 = 1;
    pub const SIMILARITY_FILTER: bool = false;
    pub const SSF_THRESHOLD: f64 = 0.98;
    pub const SSF_MAX_SKIP: u32 = 10;
    pub const PIPELINE_DEPTH: u32 = 0;
    pub const MAX_LATENESS: i64 = -1;
    pub const LATENCY: i64 = -1;
    pub const BYPASS: bool = false;
    pub const MIX: f64 = 1.0;
}

/// The properties as set; `None` is "as the model folder says, else the general default".
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub model: Option<PathBuf>,
    pub backend: Backend,
    pub build_engines: BuildEngines,
    pub onnxruntime_library: Option<PathBuf>,
    pub tensorrt_library: Option<PathBuf>,
    /// The GPU's number, or -1.
    pub device_id: i32,
    pub prompt: Option<String>,
    /// How often `prompt` has been set, to the same too.
    pub prompt_set: u64,
    pub negative_prompt: Option<String>,
    pub prompt_interpolation: PromptInterpolation,
    /// Nanoseconds.
    pub prompt_transition: u64,
    pub steps: Option<u32>,
    pub strength: Option<f64>,
    /// As written, such as "32,45".
    pub t_index_list: Option<String>,
    pub num_inference_steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    pub delta: Option<f64>,
    pub cfg_type: Option<CfgType>,
    pub scheduler: Scheduler,
    pub eta: f64,
    pub mode: Mode,
    pub seed: u64,
    pub noise: Noise,
    pub noise_walk_frames: u32,
    pub add_noise: bool,
    pub frame_buffer_size: u32,
    pub similarity_filter: bool,
    pub ssf_threshold: f64,
    pub ssf_max_skip: u32,
    pub mix: f64,
    pub width: u32,
    pub height: u32,
    pub timing: Timing,
    pub pipeline_depth: u32,
    pub late_policy: LatePolicy,
    /// Nanoseconds, or -1: two frames.
    pub max_lateness: i64,
    /// Nanoseconds, or -1: as measured.
    pub latency: i64,
    pub while_loading: WhileLoading,
    pub bypass: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: None,
            backend: Backend::default(),
            build_engines: BuildEngines::default(),
            onnxruntime_library: None,
            tensorrt_library: None,
            device_id: default::DEVICE_ID,
            prompt: None,
            prompt_set: 0,
            negative_prompt: None,
            prompt_interpolation: PromptInterpolation::default(),
            prompt_transition: 0,
            steps: None,
            strength: None,
            t_index_list: None,
            num_inference_steps: None,
            guidance_scale: None,
            delta: None,
            cfg_type: None,
            scheduler: Scheduler::default(),
            eta: default::ETA,
            mode: Mode::default(),
            seed: default::SEED,
            noise: Noise::default(),
            noise_walk_frames: default::NOISE_WALK_FRAMES,
            add_noise: default::ADD_NOISE,
            frame_buffer_size: default::FRAME_BUFFER_SIZE,
            similarity_filter: default::SIMILARITY_FILTER,
            ssf_threshold: default::SSF_THRESHOLD,
            ssf_max_skip: default::SSF_MAX_SKIP,
            mix: default::MIX,
            width: 0,
            height: 0,
            timing: Timing::default(),
            pipeline_depth: default::PIPELINE_DEPTH,
            late_policy: LatePolicy::default(),
            max_lateness: default::MAX_LATENESS,
            latency: default::LATENCY,
            while_loading: WhileLoading::default(),
            bypass: default::BYPASS,
        }
    }
}

/// A prompt and its negative.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Prompts {
    pub prompt: String,
    /// `None` where neither the user nor the model folder says one.
    pub negative: Option<String>,
    /// How mixes are blended.
    pub interpolation: Interpolation,
}

impl Settings {
    /// The number of the GPU that is asked for, if one is.
    pub fn device(&self) -> Option<usize> {
        usize::try_from(self.device_id).ok()
    }

    /// Whether a late frame shows what the one before it shows. With immediate timing each frame in is one out.
    pub fn repeats_late(&self) -> bool {
        match self.late_policy {
            LatePolicy::Repeat => true,
            LatePolicy::Drop => self.timing == Timing::Immediate,
            LatePolicy::Passthrough | LatePolicy::None => false,
        }
    }

    /// Steps per frame, as far as `steps` decides it.
    pub fn steps(&self, manifest: &Manifest) -> u32 {
        let from_model = manifest.defaults.steps.map(|steps| steps as u32);
        self.steps.or(from_model).unwrap_or(default::STEPS)
    }

    /// Share of the noise levels that frames go through.
    pub fn strength(&self, manifest: &Manifest) -> f64 {
        self.strength
            .or(manifest.defaults.strength)
            .unwrap_or(default::STRENGTH)
    }

    /// Length of the schedule.
    pub fn num_inference_steps(&self, manifest: &Manifest) -> u32 {
        let from_model = manifest.defaults.num_inference_steps.map(|n| n as u32);
        self.num_inference_steps
            .or(from_model)
            .unwrap_or(default::NUM_INFERENCE_STEPS)
    }

    /// Guidance scale g.
    pub fn guidance_scale(&self, manifest: &Manifest) -> f64 {
        self.guidance_scale
            .or(manifest.defaults.guidance_scale)
            .unwrap_or(default::GUIDANCE_SCALE)
    }

    /// Weight δ of the residual noise.
    pub fn delta(&self, manifest: &Manifest) -> f64 {
        self.delta
            .or(manifest.defaults.delta)
            .unwrap_or(default::DELTA)
    }

    /// Guidance mode.
    pub fn cfg_type(&self, manifest: &Manifest) -> CfgType {
        let from_model = || manifest.defaults.cfg_type.as_ref()?.parse().ok();
        self.cfg_type
            .or_else(from_model)
            .unwrap_or(default::CFG_TYPE)
    }

    /// The prompts in force.
    pub fn prompts(&self, manifest: &Manifest) -> Prompts {
        let pick = |set: &Option<String>, from_model: &Option<String>| {
            set.as_ref().or(from_model.as_ref()).cloned()
        };
        Prompts {
            prompt: pick(&self.prompt, &manifest.defaults.prompt).unwrap_or_default(),
            negative: pick(&self.negative_prompt, &manifest.defaults.negative_prompt),
            interpolation: self.prompt_interpolation.into(),
        }
    }

    /// The similarity filter, if it is on.
    pub fn similarity(&self) -> Option<Similarity> {
        self.similarity_filter.then_some(Similarity {
            threshold: self.ssf_threshold,
            max_skip: self.ssf_max_skip,
        })
    }

    /// What the stream is to do, with the model that has this manifest and this method of its own.
    ///
    /// # Errors
    /// When `t-index-list` is no list of numbers; its range and order are the schedule's to check.
    pub fn stream(
        &self,
        manifest: &Manifest,
        method: ConsistencyMethod,
    ) -> Result<stream::Settings> {
        let method = match self.scheduler {
            Scheduler::Auto => method,
            Scheduler::Lcm => ConsistencyMethod::Lcm,
            Scheduler::Tcd => ConsistencyMethod::Tcd,
        };
        let num_inference_steps = self.num_inference_steps(manifest) as usize;
        let spread = |strength| {
            let steps = self.steps(manifest) as usize;
            spread_indices(steps, strength, num_inference_steps)
        };
        let t_index_list = match (&self.t_index_list, &manifest.defaults.t_index_list) {
            (Some(list), _) => parse_indices(list)?,
            // There is no picture to keep a share of.
            (None, Some(list)) if self.mode == Mode::TextToImage && self.steps.is_none() => {
                spread_indices(list.len(), 1.0, num_inference_steps)
            }
            _ if self.mode == Mode::TextToImage => spread(1.0),
            (None, Some(list)) if self.steps.is_none() && self.strength.is_none() => list.clone(),
            _ => spread(self.strength(manifest)),
        };
        Ok(stream::Settings {
            num_inference_steps,
            t_index_list,
            method: match method {
                ConsistencyMethod::Lcm => Method::Lcm,
                ConsistencyMethod::Tcd => Method::Tcd { eta: self.eta },
            },
            guidance: Guidance {
                cfg_type: self.cfg_type(manifest),
                scale: self.guidance_scale(manifest),
                delta: self.delta(manifest),
            },
            mode: match self.mode {
                Mode::ImageToImage => stream::Mode::ImageToImage,
                Mode::TextToImage => stream::Mode::TextToImage,
            },
            seed: self.seed,
            variation: match self.noise {
                Noise::Fixed => Variation::Fixed,
                Noise::Fresh => Variation::Fresh,
                Noise::Walk => Variation::Walk {
                    frames: self.noise_walk_frames,
                },
            },
            add_noise: self.add_noise,
            similarity: self.similarity(),
            mix: self.mix,
        })
    }

    /// Whether a stream of the model in `folder` can begin with them, as far as that can be told before the first frame.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::error::Error::Setting) that names `t-index-list` or `num-inference-steps`.
    pub fn check(&self, folder: &ModelFolder) -> Result<()> {
        let settings = self.stream(folder.manifest(), folder.scheduler().method)?;
        let (method, steps) = (settings.method, settings.num_inference_steps);
        schedule(folder.scheduler(), method, steps, &settings.t_index_list).map(|_| ())
    }

    /// The size, width and height, that frames of `frame` pixels are processed at.
    ///
    /// A size that the user gives is used as given, and refused by the stream if the model cannot do it. With only one
    /// side given the other keeps the frame's shape. With none, the model's own size decides, or its area (which never
    /// enlarges a frame), else the frame's size; all of these are rounded to what the model can do.
    pub fn processing_size(
        &self,
        manifest: &Manifest,
        limits: &Limits,
        frame: (usize, usize),
    ) -> (usize, usize) {
        let round = |side: f64| {
            let multiple = limits.multiple.max(1);
            ((side / multiple as f64).round() as usize).max(1) * multiple
        };
        // What nobody asks for follows the engines, where there are some.
        let within = |side: usize, range: Option<(usize, usize)>| match range {
            Some((min, max)) => side.clamp(min, max.max(min)),
            None => side,
        };
        let built = limits.built.as_ref();
        let (wide, high) = (built.map(|b| b.width), built.map(|b| b.height));
        let (frame_width, frame_height) = (frame.0.max(1) as f64, frame.1.max(1) as f64);
        let aspect = frame_width / frame_height;
        match (self.width as usize, self.height as usize) {
            (0, 0) => {}
            (_, 0) | (0, _) if limits.fixed_size.is_some() => {}
            (width, 0) => return (width, within(round(width as f64 / aspect), high)),
            (0, height) => return (within(round(height as f64 * aspect), wide), height),
            size => return size,
        }
        if let Some(size) = limits.fixed_size {
            return size;
        }
        let defaults = &manifest.defaults;
        if let (Some(width), Some(height)) = (defaults.width, defaults.height) {
            return (round(width as f64), round(height as f64));
        }
        let shrink = defaults.size.map_or(1.0, |size| {
            (size as f64 / (frame_width * frame_height).sqrt()).min(1.0)
        });
        (
            within(round(frame_width * shrink), wide),
            within(round(frame_height * shrink), high),
        )
    }
}

/// The numbers of a list such as "32,45"; spaces are allowed.
fn parse_indices(list: &str) -> Result<Vec<usize>> {
    list.split(',')
        .map(|index| {
            index.trim().parse().map_err(|_| {
                Error::setting(
                    "t-index-list",
                    format!("\"{list}\" is not a list of indices; expected whole numbers with commas between, such as \"32,45\""),
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Built;

    fn limits(multiple: usize) -> Limits {
        Limits {
            latent_channels: 4,
            latent_scale: 8,
            multiple,
            fixed_size: None,
            chunks: None,
            samples_posterior: false,
            built: None,
        }
    }

    #[test]
    fn sizes_follow_the_user_then_the_model_then_the_frame() {
        let mut settings = Settings::default();
        let mut manifest = Manifest::default();
        let size = |settings: &Settings, manifest: &Manifest, frame| {
            settings.processing_size(manifest, &limits(32), frame)
        };
        assert_eq!(size(&settings, &manifest, (640, 480)), (640, 480));
        assert_eq!(size(&settings, &manifest, (650, 470)), (640, 480));
        assert_eq!(size(&settings, &manifest, (5, 3)), (32, 32));
        manifest.defaults.size = Some(256);
        assert_eq!(size(&settings, &manifest, (1920, 1080)), (352, 192));
        assert_eq!(size(&settings, &manifest, (128, 128)), (128, 128));
        settings.width = 512;
        assert_eq!(size(&settings, &manifest, (1920, 1080)), (512, 288));
        settings.height = 500;
        assert_eq!(size(&settings, &manifest, (1920, 1080)), (512, 500));
        settings.width = 0;
        assert_eq!(size(&settings, &manifest, (100, 100)), (512, 500));
    }

    /// Engines that are there decide a size that nobody asks for, and refuse one that is asked for.
    #[test]
    fn sizes_that_nobody_asks_for_follow_the_engines() {
        let mut settings = Settings::default();
        let mut manifest = Manifest::default();
        manifest.defaults.size = Some(512);
        let with = |width: (usize, usize), height: (usize, usize)| Limits {
            built: Some(Built {
                width,
                height,
                rows: (1, 8),
                frames: (1, 1),
                chunks: (1, 1),
                command: "streamdiffusion build m".into(),
            }),
            ..limits(64)
        };
        let frame = (1920, 1080);
        let one = with((512, 512), (512, 512));
        let range = with((384, 640), (256, 640));
        assert_eq!(settings.processing_size(&manifest, &one, frame), (512, 512));
        assert_eq!(
            settings.processing_size(&manifest, &range, frame),
            (640, 384)
        );
        settings.width = 512;
        assert_eq!(
            settings.processing_size(&manifest, &range, frame),
            (512, 320)
        );
        assert_eq!(settings.processing_size(&manifest, &one, frame), (512, 512));
        settings.width = 768;
        settings.height = 512;
        let size = settings.processing_size(&manifest, &one, frame);
        assert_eq!(size, (768, 512));
        let error = one.check_size(size.0, size.1).unwrap_err().to_string();
        assert!(
            error.contains("property width") && error.contains("--size 768x512"),
            "{error}"
        );
    }

    #[test]
    fn the_list_rules_over_steps_and_the_user_over_the_model() {
        let mut settings = Settings::default();
        let mut manifest = Manifest::default();
        let list = |settings: &Settings, manifest: &Manifest| {
            let lcm = ConsistencyMethod::Lcm;
            settings.stream(manifest, lcm).unwrap().t_index_list
        };
        assert_eq!(list(&settings, &manifest), [32, 41]);
        manifest.defaults.t_index_list = Some(vec![20, 40]);
        assert_eq!(list(&settings, &manifest), [20, 40]);
        settings.steps = Some(1);
        assert_eq!(list(&settings, &manifest), [32]);
        settings.steps = None;
        settings.mode = Mode::TextToImage;
        assert_eq!(list(&settings, &manifest), [0, 25]);
        manifest.defaults.t_index_list = Some(vec![10, 20, 30, 40]);
        assert_eq!(list(&settings, &manifest), [0, 12, 25, 37]);
        settings.steps = Some(1);
        assert_eq!(list(&settings, &manifest), [0]);
        settings.t_index_list = Some(" 1, 2,3".into());
        assert_eq!(list(&settings, &manifest), [1, 2, 3]);
        for bad in ["", "1,,2", "-1", "1;2", "x"] {
            settings.t_index_list = Some(bad.into());
            let error = settings
                .stream(&manifest, ConsistencyMethod::Lcm)
                .unwrap_err()
                .to_string();
            assert!(error.contains("t-index-list"), "{error}");
        }
    }
}
