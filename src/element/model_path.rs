//! Where the bundled demo model is.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Overrides the search for the bundled model: a folder that holds `demo/`.
const MODELS_ENV: &str = "GST_STREAMDIFFUSION_MODELS";

/// The demo model's folder: in `$GST_STREAMDIFFUSION_MODELS`, under the data directory of the prefix the plugin is
/// installed in, beside the plugin, or in the source tree it was built from.
pub fn bundled() -> Result<PathBuf> {
    let candidates = candidates();
    candidates
        .iter()
        .find(|folder| folder.join("model_index.json").is_file())
        .cloned()
        .ok_or_else(|| {
            Error::not_found(
                candidates.first().map_or(Path::new("models/demo"), PathBuf::as_path),
                format!(
                    "the bundled demo model was not found here or in any of {candidates:?}; set the property model to a model folder, or {MODELS_ENV} to the folder that holds demo/"
                ),
            )
        })
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::var_os(MODELS_ENV) {
        folders.push(PathBuf::from(folder).join("demo"));
    }
    if let Some(plugin) = crate::location::object().as_deref().and_then(Path::parent) {
        folders.push(plugin.join("models/demo"));
        // PREFIX/lib/gstreamer-1.0 or PREFIX/lib/TRIPLET/gstreamer-1.0; PREFIX/bin for the program.
        for prefix in plugin.ancestors().skip(1).take(3) {
            folders.push(prefix.join("share/gst-plugin-streamdiffusion/models/demo"));
        }
    }
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    folders
}
