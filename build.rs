// SPDX-License-Identifier: MIT OR Apache-2.0

//! Gives the plugin its commit and release date, as `gst-inspect-1.0` shows them.

fn main() {
    gst_plugin_version_helper::info();

    // Without these lines Cargo would rebuild the plugin after every edit of any file of the
    // package, documents and scripts included. Only name files that exist: Cargo takes a missing
    // one for a changed one.
    for file in ["build.rs", "Cargo.toml", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
}
