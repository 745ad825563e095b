// Licensed under the MIT License or the Apache License, Version 2.0, at your option.
// SPDX-License-Identifier: MIT OR Apache-2.0

//! StreamDiffusion (arXiv 2312.12491) as a GStreamer element: live video in, restyled video out.
//!
//! [`element`] speaks GStreamer, [`stream`] is the algorithm, [`device`] does its arithmetic, [`engine`] runs its neural
//! networks and [`model`] reads model folders. `docs/design.md` has the picture.

// What tests of the library share with those of tests/ names it from outside.
#[cfg(test)]
extern crate self as gststreamdiffusion;
#[cfg(all(test, feature = "cuda", target_os = "linux"))]
#[path = "../tests/standin/computing.rs"]
mod computing;
#[cfg(all(test, feature = "cuda", target_os = "linux"))]
#[path = "../tests/standin/mod.rs"]
mod standin;

pub mod device;
mod element;
pub mod engine;
pub mod error;
mod location;
pub mod model;
pub mod stream;

pub use element::{
    Backend, CfgTypeProperty, Mode, Noise, Scheduler, StreamDiffusion, Timing, bundled_model,
};

use gst::glib;

/**
 * SECTION:plugin-streamdiffusion
 * @title: streamdiffusion
 * @short_description: live restyling of video with StreamDiffusion
 *
 * One element, #streamdiffusion, which turns live video into the style that a prompt names. It runs on the CPU, through
 * ONNX Runtime, with a small model that comes along, and on NVIDIA GPUs. Both ONNX Runtime and what GPUs need are looked
 * for when the element starts, so that the plugin loads anywhere.
 *
 * Since: 0.1.0
 */
fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    element::register(plugin)
}

gst::plugin_define!(
    streamdiffusion,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    // The names GStreamer 1.22 knows have no "MIT OR Apache-2.0".
    "MIT/X11",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);
