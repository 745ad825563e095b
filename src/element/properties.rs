//! The properties: their names, ranges and texts, and how they map to [`Settings`].

use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::settings::{Settings, default};
use super::{
    Backend, BuildEngines, CfgTypeProperty, LatePolicy, Mode, Noise, PromptInterpolation,
    Scheduler, Timing, WhileLoading,
};
use crate::model::Manifest;

/// A property that takes effect at the next frame.
const LIVE: glib::ParamFlags = gst::PARAM_FLAG_MUTABLE_PLAYING;
/// A live one that a `GstController` may drive.
const CONTROLLED: glib::ParamFlags =
    gst::PARAM_FLAG_MUTABLE_PLAYING.union(gst::PARAM_FLAG_CONTROLLABLE);
/// A property that is read when the element starts.
const AT_START: glib::ParamFlags = gst::PARAM_FLAG_MUTABLE_READY;

/// All of them, in the order of their use.
pub static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
    let string = |name: &str, nick: &str, blurb: &str, flags| {
        glib::ParamSpecString::builder(name)
            .nick(nick)
            .blurb(blurb)
            .flags(glib::ParamFlags::READWRITE | flags)
            .build()
    };
    let count = |name: &str,
                 nick: &str,
                 blurb: &str,
                 range: std::ops::RangeInclusive<u32>,
                 value,
                 flags| {
        glib::ParamSpecUInt::builder(name)
            .nick(nick)
            .blurb(blurb)
            .minimum(*range.start())
            .maximum(*range.end())
            .default_value(value)
            .flags(glib::ParamFlags::READWRITE | flags)
            .build()
    };
    let number =
        |name: &str, nick: &str, blurb: &str, range: std::ops::RangeInclusive<f64>, value| {
            glib::ParamSpecDouble::builder(name)
                .nick(nick)
                .blurb(blurb)
                .minimum(*range.start())
                .maximum(*range.end())
                .default_value(value)
                .flags(glib::ParamFlags::READWRITE | CONTROLLED)
                .build()
        };
    let nanoseconds = |name: &str, nick: &str, blurb: &str, value| {
        glib::ParamSpecInt64::builder(name)
            .nick(nick)
            .blurb(blurb)
            .minimum(-1)
            .default_value(value)
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build()
    };
    let switch = |name: &str, nick: &str, blurb: &str, value| {
        glib::ParamSpecBoolean::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(value)
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build()
    };
    vec![
        string(
            "model",
            "Model folder",
            "Folder of the model, in the ONNX layout that Optimum writes; unset: the bundled demo model",
            AT_START,
        ),
        glib::ParamSpecEnum::builder_with_default("backend", Backend::default())
            .nick("Backend")
            .blurb("What runs the model; stats says which one was chosen and why")
            .flags(glib::ParamFlags::READWRITE | AT_START)
            .build(),
        glib::ParamSpecEnum::builder_with_default("build-engines", BuildEngines::default())
            .nick("Build engines")
            .blurb("Whether TensorRT engines that are missing are built when the model is loaded, with progress messages; else streamdiffusion build makes them")
            .flags(glib::ParamFlags::READWRITE | AT_START)
            .build(),
        string(
            "onnxruntime-library",
            "ONNX Runtime",
            "ONNX Runtime's shared library, or the folder it is in; a process can have one only. Unset: what ORT_DYLIB_PATH names, else the one beside the plugin, else the system's",
            AT_START,
        ),
        string(
            "tensorrt-library",
            "TensorRT",
            "TensorRT's shared library, or the folder that it and its ONNX parser are in; a process can have one only. Unset: what TENSORRT_LIBRARY_PATH names, else the one beside the plugin, else the system's",
            AT_START,
        ),
        glib::ParamSpecInt::builder("device-id")
            .nick("GPU")
            .blurb("Number of the GPU to use, counted from 0; -1: that of the neighbours, else the first. The CPU has none")
            .minimum(-1)
            .default_value(default::DEVICE_ID)
            .flags(glib::ParamFlags::READWRITE | AT_START)
            .build(),
        string(
            "prompt",
            "Prompt",
            "What to turn the picture into; unset: the model's own. (word:1.3) counts more, (word:0.7) less; \"a:0.7 | b:0.3\" is a mix of prompts by weights. A new prompt takes effect as soon as it is encoded, or over prompt-transition",
            LIVE,
        ),
        string(
            "negative-prompt",
            "Negative prompt",
            "What to steer away from, for cfg-type full and initialize, in the form of prompt; unset: the model's own",
            LIVE,
        ),
        glib::ParamSpecEnum::builder_with_default("prompt-interpolation", PromptInterpolation::default())
            .nick("Prompt interpolation")
            .blurb("How the embeddings of prompts are blended, in mixes and transitions")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        glib::ParamSpecUInt64::builder("prompt-transition")
            .nick("Prompt transition")
            .blurb("How long, in nanoseconds of the video's time, the prompts in force take to turn into changed ones (0: at once). It counts for changes from then on")
            .default_value(0)
            .flags(glib::ParamFlags::READWRITE | CONTROLLED)
            .build(),
        count(
            "steps",
            "Steps",
            "Denoising steps per frame; more are better and slower. The model's own unless set. Not used when t-index-list is set",
            1..=8,
            default::STEPS,
            CONTROLLED,
        ),
        glib::ParamSpecEnum::builder_with_default("mode", Mode::default())
            .nick("Mode")
            .blurb("What frames start from. With txt2img, strength is not used and cfg-type self means none")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        number(
            "strength",
            "Strength",
            "How far the picture is changed, as the share of the noise levels it goes through (0: hardly, 1: wholly). The model's own unless set. Not used when t-index-list is set",
            0.0..=1.0,
            default::STRENGTH,
        ),
        string(
            "t-index-list",
            "Timestep indices",
            "The exact steps, as ascending indices into the num-inference-steps timesteps with commas between (0: the noisiest), such as \"32,45\"; overrides steps and strength",
            LIVE,
        ),
        count(
            "num-inference-steps",
            "Inference steps",
            "Length of the list of timesteps that t-index-list and strength refer to, at most the model's original_inference_steps (50 as a rule). The model's own unless set",
            1..=1000,
            default::NUM_INFERENCE_STEPS,
            CONTROLLED,
        ),
        number(
            "guidance-scale",
            "Guidance scale",
            "How strongly to follow the prompt against what cfg-type compares it with; 1 or less: no guidance. The model's own unless set",
            0.0..=100.0,
            default::GUIDANCE_SCALE,
        ),
        number(
            "delta",
            "Delta",
            "Weight of the residual noise in guidance, for cfg-type self and initialize. The model's own unless set",
            0.0..=10.0,
            default::DELTA,
        ),
        glib::ParamSpecEnum::builder_with_default("cfg-type", CfgTypeProperty::default())
            .nick("Guidance mode")
            .blurb("What guidance compares the prompt with. The model's own unless set")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        glib::ParamSpecEnum::builder_with_default("scheduler", Scheduler::default())
            .nick("Scheduler")
            .blurb("How one step leads to the next")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        number(
            "eta",
            "Eta",
            "With scheduler tcd, how much of the noise between steps is new (0: none, 1: as with lcm)",
            0.0..=1.0,
            default::ETA,
        ),
        glib::ParamSpecUInt64::builder("seed")
            .nick("Seed")
            .blurb("Which noise to use; a seed means the same noise as in PyTorch on the CPU (its low 32 bits count)")
            .default_value(default::SEED)
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        glib::ParamSpecEnum::builder_with_default("noise", Noise::default())
            .nick("Noise")
            .blurb("How the noise that frames start with changes from frame to frame")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        count(
            "noise-walk-frames",
            "Frames of a walk",
            "With noise=walk, frames from one seed's noise to the next one's",
            1..=100_000,
            default::NOISE_WALK_FRAMES,
            CONTROLLED,
        ),
        switch(
            "add-noise",
            "Add noise",
            "Whether noise is added again between steps",
            default::ADD_NOISE,
        ),
        count(
            "frame-buffer-size",
            "Frame buffer size",
            "Frames that go through the model together; more give more throughput and more delay. They go by the prompt and the other values of the last of them, but each by its own mix",
            1..=16,
            default::FRAME_BUFFER_SIZE,
            AT_START,
        ),
        switch(
            "similarity-filter",
            "Similarity filter",
            "Whether frames much like the last one processed are skipped, by chance, the more likely the more alike",
            default::SIMILARITY_FILTER,
        ),
        number(
            "ssf-threshold",
            "Similarity threshold",
            "Cosine similarity from which frames may be skipped (1: none is)",
            0.0..=1.0,
            default::SSF_THRESHOLD,
        ),
        count(
            "ssf-max-skip",
            "Most frames skipped",
            "At most this many frames are skipped in a row",
            0..=u32::MAX,
            default::SSF_MAX_SKIP,
            CONTROLLED,
        ),
        number(
            "mix",
            "Mix",
            "How much of the restyled picture is to be seen (1: it alone, 0: the picture that came in, at the processing size; between: both). Skipped frames keep the mix of the frame that they resemble",
            0.0..=1.0,
            default::MIX,
        ),
        count(
            "width",
            "Processing width",
            "Width in pixels that frames are processed at; 0: the model's own, else from the caps, rounded to what the model can do",
            0..=8192,
            0,
            AT_START,
        ),
        count(
            "height",
            "Processing height",
            "Height in pixels that frames are processed at; 0: the model's own, else from the caps, rounded to what the model can do",
            0..=8192,
            0,
            AT_START,
        ),
        glib::ParamSpecEnum::builder_with_default("timing", Timing::default())
            .nick("Timing")
            .blurb("Which time an output frame carries")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        count(
            "pipeline-depth",
            "Pipeline depth",
            "Frames that may be computed while the pipeline goes on; each adds a frame of latency. 0: each frame is waited for. Not with timing=immediate",
            0..=8,
            default::PIPELINE_DEPTH,
            AT_START,
        ),
        glib::ParamSpecEnum::builder_with_default("late-policy", LatePolicy::default())
            .nick("Late frames")
            .blurb("What becomes of frames that come too late: by max-lateness where the source is live, and by what the sink says where qos is on. With timing=immediate, drop is repeat")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        nanoseconds(
            "max-lateness",
            "Most lateness",
            "With a live source, nanoseconds that a frame may come after its time without being late; -1: two frames",
            default::MAX_LATENESS,
        ),
        nanoseconds(
            "latency",
            "Latency",
            "Nanoseconds of latency to report to the pipeline; -1: the frames held back and the time measured for one",
            default::LATENCY,
        ),
        glib::ParamSpecEnum::builder_with_default("while-loading", WhileLoading::default())
            .nick("While loading")
            .blurb("What becomes of frames that come before the model is loaded")
            .flags(glib::ParamFlags::READWRITE | LIVE)
            .build(),
        switch(
            "bypass",
            "Bypass",
            "Whether frames pass as they are, not restyled; the model stays loaded",
            default::BYPASS,
        ),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb("Frames processed, skipped (by the similarity filter, or as they fill a gap), dropped, repeated, passed (late-policy, while-loading, bypass) and output (uint64); fps (going out) and in-fps; latency-ns (as reported); width and height of processing; model; backend, backend-reason (why that one) and device (the GPU, or CPU); precomputed (how much of the U-Net is computed ahead); engines (of TensorRT: which, found or built, when and why); launched (on a GPU: how many frames as one graph); vram (bytes of the GPU's memory in use, by whomever; 0 on the CPU); load-time-ns; prompt and negative-prompt in force, or that those are turning into; encode-, denoise- and decode-ms-p50 and -p95 (double, milliseconds)")
            .read_only()
            .build(),
    ]
});

/// Sets the property `name`; `Err` says why the value cannot be taken.
pub fn set(settings: &mut Settings, name: &str, value: &glib::Value) -> Result<(), String> {
    /// GObject has checked type and range by the spec; this only unwraps the value.
    fn get<T>(value: &glib::Value) -> Result<T, String>
    where
        T: for<'a> glib::value::FromValue<'a> + StaticType,
    {
        value
            .get()
            .map_err(|_| format!("expected a {}", T::static_type().name()))
    }
    match name {
        "model" => settings.model = path_if_any(value),
        "backend" => settings.backend = get(value)?,
        "build-engines" => settings.build_engines = get(value)?,
        "onnxruntime-library" => settings.onnxruntime_library = path_if_any(value),
        "tensorrt-library" => settings.tensorrt_library = path_if_any(value),
        "device-id" => settings.device_id = get(value)?,
        "prompt" => {
            settings.prompt = text(value)?;
            settings.prompt_set += 1;
        }
        "negative-prompt" => settings.negative_prompt = text(value)?,
        "prompt-interpolation" => settings.prompt_interpolation = get(value)?,
        "prompt-transition" => settings.prompt_transition = get(value)?,
        "steps" => settings.steps = Some(get(value)?),
        "strength" => settings.strength = Some(get(value)?),
        "t-index-list" => {
            settings.t_index_list = text(value)?.filter(|list| !list.trim().is_empty());
        }
        "num-inference-steps" => settings.num_inference_steps = Some(get(value)?),
        "guidance-scale" => settings.guidance_scale = Some(get(value)?),
        "delta" => settings.delta = Some(get(value)?),
        "cfg-type" => settings.cfg_type = Some(get::<CfgTypeProperty>(value)?.into()),
        "mode" => settings.mode = get(value)?,
        "scheduler" => settings.scheduler = get(value)?,
        "eta" => settings.eta = get(value)?,
        "seed" => settings.seed = get(value)?,
        "noise" => settings.noise = get(value)?,
        "noise-walk-frames" => settings.noise_walk_frames = get(value)?,
        "add-noise" => settings.add_noise = get(value)?,
        "frame-buffer-size" => settings.frame_buffer_size = get(value)?,
        "similarity-filter" => settings.similarity_filter = get(value)?,
        "ssf-threshold" => settings.ssf_threshold = get(value)?,
        "ssf-max-skip" => settings.ssf_max_skip = get(value)?,
        "mix" => settings.mix = get(value)?,
        "width" => settings.width = get(value)?,
        "height" => settings.height = get(value)?,
        "timing" => settings.timing = get(value)?,
        "pipeline-depth" => settings.pipeline_depth = get(value)?,
        "late-policy" => settings.late_policy = get(value)?,
        "max-lateness" => settings.max_lateness = get(value)?,
        "latency" => settings.latency = get(value)?,
        "while-loading" => settings.while_loading = get(value)?,
        "bypass" => settings.bypass = get(value)?,
        _ => return Err("there is no such property".into()),
    }
    Ok(())
}

/// The property `name` as in force: what was set, else what the model folder says, else the general default.
pub fn get(settings: &Settings, manifest: &Manifest, name: &str) -> Option<glib::Value> {
    Some(match name {
        "model" => path_text(&settings.model).to_value(),
        "backend" => settings.backend.to_value(),
        "build-engines" => settings.build_engines.to_value(),
        "onnxruntime-library" => path_text(&settings.onnxruntime_library).to_value(),
        "tensorrt-library" => path_text(&settings.tensorrt_library).to_value(),
        "device-id" => settings.device_id.to_value(),
        "prompt" => settings
            .prompt
            .as_ref()
            .or(manifest.defaults.prompt.as_ref())
            .to_value(),
        "negative-prompt" => settings
            .negative_prompt
            .as_ref()
            .or(manifest.defaults.negative_prompt.as_ref())
            .to_value(),
        "prompt-interpolation" => settings.prompt_interpolation.to_value(),
        "prompt-transition" => settings.prompt_transition.to_value(),
        "steps" => settings.steps(manifest).to_value(),
        "strength" => settings.strength(manifest).to_value(),
        "t-index-list" => settings.t_index_list.to_value(),
        "num-inference-steps" => settings.num_inference_steps(manifest).to_value(),
        "guidance-scale" => settings.guidance_scale(manifest).to_value(),
        "delta" => settings.delta(manifest).to_value(),
        "cfg-type" => CfgTypeProperty::from(settings.cfg_type(manifest)).to_value(),
        "mode" => settings.mode.to_value(),
        "scheduler" => settings.scheduler.to_value(),
        "eta" => settings.eta.to_value(),
        "seed" => settings.seed.to_value(),
        "noise" => settings.noise.to_value(),
        "noise-walk-frames" => settings.noise_walk_frames.to_value(),
        "add-noise" => settings.add_noise.to_value(),
        "frame-buffer-size" => settings.frame_buffer_size.to_value(),
        "similarity-filter" => settings.similarity_filter.to_value(),
        "ssf-threshold" => settings.ssf_threshold.to_value(),
        "ssf-max-skip" => settings.ssf_max_skip.to_value(),
        "mix" => settings.mix.to_value(),
        "width" => settings.width.to_value(),
        "height" => settings.height.to_value(),
        "timing" => settings.timing.to_value(),
        "pipeline-depth" => settings.pipeline_depth.to_value(),
        "late-policy" => settings.late_policy.to_value(),
        "max-lateness" => settings.max_lateness.to_value(),
        "latency" => settings.latency.to_value(),
        "while-loading" => settings.while_loading.to_value(),
        "bypass" => settings.bypass.to_value(),
        _ => return None,
    })
}

/// The bytes of a string value: C callers may pass any, and the Rust bindings panic on what is not UTF-8.
fn bytes(value: &glib::Value) -> Option<&[u8]> {
    use glib::translate::ToGlibPtr;
    if !value.is_type(glib::Type::STRING) {
        return None;
    }
    // SAFETY: the type was checked; the string belongs to the value and lives as long as the borrow.
    unsafe {
        let text = glib::gobject_ffi::g_value_get_string(value.to_glib_none().0);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes())
    }
}

fn text(value: &glib::Value) -> Result<Option<String>, String> {
    bytes(value)
        .map(|bytes| std::str::from_utf8(bytes).map(str::to_owned))
        .transpose()
        .map_err(|err| format!("expected UTF-8 text: {err}"))
}

/// A path; an empty one is none.
fn path_if_any(value: &glib::Value) -> Option<PathBuf> {
    path(value).filter(|path| !path.as_os_str().is_empty())
}

fn path_text(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref()
        .map(|path| path.to_string_lossy().into_owned())
}

#[cfg(unix)]
fn path(value: &glib::Value) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    bytes(value).map(|bytes| std::ffi::OsStr::from_bytes(bytes).into())
}

#[cfg(not(unix))]
fn path(value: &glib::Value) -> Option<PathBuf> {
    text(value).ok().flatten().map(PathBuf::from)
}
