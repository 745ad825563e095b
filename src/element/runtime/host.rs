//! The CPU: ONNX Runtime, and pictures in main memory. Frames are converted on the streaming thread.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::convert::{self, Exporter, Importer};
use super::{Computing, Input, LoadedModel, Output, Picture, Runtime, Written, foreign};
use crate::device::{Host, HostTensor};
use crate::engine::onnxruntime::OnnxModel;
use crate::engine::shared::{self, Loaded};
use crate::engine::{Telling, Waiting};
use crate::error::{Error, Result};

/// The worker's half.
pub struct HostRuntime {
    loaded: Arc<Loaded>,
    /// When what is being computed began.
    began: Instant,
}

impl HostRuntime {
    /// Loads the model in the folder `model`, telling of each component; waits for another element that does.
    pub fn load(model: &Path, tell: Telling<'_>, waits: Waiting<'_>) -> Result<Self> {
        shared::load_telling(model, tell, waits).map(|loaded| Self {
            loaded,
            began: Instant::now(),
        })
    }
}

impl Runtime for HostRuntime {
    type Device = Host;
    type Model = OnnxModel;

    fn device(&self) -> Host {
        Host
    }

    fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    fn handle(&self) -> LoadedModel {
        LoadedModel::Host(self.loaded.clone())
    }

    fn begin(&mut self) -> Result<()> {
        self.began = Instant::now();
        Ok(())
    }

    fn import(&mut self, input: Input) -> Result<HostTensor> {
        match input {
            Input::Host(picture) => Ok(picture),
            #[cfg(feature = "cuda")]
            Input::Cuda(_) => Err(foreign()),
        }
    }

    fn submit(&mut self) -> Result<Computing> {
        Ok(Computing::Done(self.began.elapsed()))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn picture(picture: Arc<HostTensor>) -> Picture {
        Picture::Host(picture)
    }

    /// The streaming thread writes frames itself.
    fn write(&mut self, _: &Picture, _: Output) -> Result<Written> {
        Err(foreign())
    }
}

/// The streaming thread's half: conversion of frames by libgstvideo.
pub struct Converters {
    importer: Importer,
    exporter: Exporter,
}

impl Converters {
    /// From frames of `input` to pictures of `size` (width, height), and from these to frames of `output`.
    pub fn new(
        input: &gst_video::VideoInfo,
        size: (usize, usize),
        output: &gst_video::VideoInfo,
    ) -> Result<Self> {
        let failed = |err: gst::glib::BoolError| Error::engine("video converter", err.to_string());
        Ok(Self {
            importer: Importer::new(input, size).map_err(failed)?,
            exporter: Exporter::new(size, output).map_err(failed)?,
        })
    }

    /// The picture of a frame.
    pub fn import(&mut self, frame: &gst::BufferRef) -> Result<Input> {
        self.importer.import(frame).map(Input::Host).map_err(|err| {
            Error::engine(
                "input",
                format!("the buffer does not hold a frame of its caps: {err}"),
            )
        })
    }

    /// Writes a picture into the frame `output`.
    pub fn export(&mut self, picture: &HostTensor, output: &mut gst::BufferRef) -> Result<()> {
        self.exporter
            .export(picture, output)
            .map_err(|err| Error::engine("output", err.to_string()))
    }
}

/// Conversion of input frames straight to output frames, also where these are in a GPU's memory: libgstvideo maps them.
pub struct Passage(convert::Passage);

impl Passage {
    /// From frames of `input` to frames of `output`.
    pub fn new(input: &gst_video::VideoInfo, output: &gst_video::VideoInfo) -> Result<Self> {
        convert::Passage::new(input, output)
            .map(Self)
            .map_err(|err| Error::engine("video converter", err.to_string()))
    }

    /// Writes the frame `input` into `output`.
    pub fn convert(&mut self, input: &gst::BufferRef, output: &mut gst::BufferRef) -> Result<()> {
        self.0
            .convert(input, output)
            .map_err(|err| Error::engine("video converter", err.to_string()))
    }
}
