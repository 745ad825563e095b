//! The `stats` property.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::runtime::LoadedModel;
use crate::device::Device;
use crate::engine::Model;
use crate::stream::{Counters, Stage, StageTimes, Stream};

/// Frames over which the frame rate is taken.
const KEPT: usize = 64;

/// What is known about the running stream.
#[derive(Default)]
pub struct Stats {
    model: Option<String>,
    backend: Option<String>,
    backend_reason: String,
    device: String,
    precomputed: Option<String>,
    engines: Option<String>,
    launched: String,
    size: (usize, usize),
    counters: Counters,
    times: StageTimes,
    output: u64,
    left_at: VecDeque<Instant>,
}

impl Stats {
    /// Of an element that has just started: `device` was chosen for `reason`.
    pub fn started(device: String, reason: String) -> Self {
        Self {
            backend_reason: reason,
            device,
            ..Self::default()
        }
    }

    /// Notes what was loaded.
    pub fn loaded(&mut self, loaded: &LoadedModel) {
        self.model = Some(loaded.folder().name());
        self.backend = Some(loaded.backend().to_owned());
        self.precomputed = Some(loaded.precomputed().to_owned());
        self.engines = Some(loaded.engines().to_owned());
    }

    /// Takes over the stream's figures.
    pub fn update<D: Device, M: Model<Tensor = D::Tensor>, T>(
        &mut self,
        stream: &Stream<D, M, T>,
        size: (usize, usize),
        launched: String,
    ) {
        self.size = size;
        self.launched = launched;
        self.counters = stream.counters();
        self.times.clone_from(stream.times());
    }

    /// Notes that a frame left the element.
    pub fn frame_left(&mut self) {
        self.output += 1;
        if self.left_at.len() == KEPT {
            self.left_at.pop_front();
        }
        self.left_at.push_back(Instant::now());
    }

    /// The figures as the property shows them.
    pub fn structure(&self) -> gst::Structure {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let fps = match (self.left_at.front(), self.left_at.back()) {
            (Some(first), Some(last)) if last > first => {
                (self.left_at.len() - 1) as f64 / (*last - *first).as_secs_f64()
            }
            _ => 0.0,
        };
        let mut stats = gst::Structure::builder("streamdiffusion-stats")
            .field("processed", self.counters.processed)
            .field("skipped", self.counters.skipped)
            .field("output", self.output)
            .field("fps", fps)
            .field("width", self.size.0 as u32)
            .field("height", self.size.1 as u32)
            .field("model", self.model.as_deref().unwrap_or(""))
            .field("backend", self.backend.as_deref().unwrap_or(""))
            .field("backend-reason", self.backend_reason.as_str())
            .field("device", self.device.as_str())
            .field("precomputed", self.precomputed.as_deref().unwrap_or(""))
            .field("engines", self.engines.as_deref().unwrap_or(""))
            .field("launched", self.launched.as_str())
            .build();
        for (name, stage) in [
            ("encode", Stage::Encode),
            ("denoise", Stage::Denoise),
            ("decode", Stage::Decode),
        ] {
            stats.set(
                format!("{name}-ms-p50"),
                ms(self.times.quantile(stage, 0.5)),
            );
            stats.set(
                format!("{name}-ms-p95"),
                ms(self.times.quantile(stage, 0.95)),
            );
        }
        stats
    }
}
