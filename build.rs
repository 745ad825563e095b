// SPDX-License-Identifier: MIT OR Apache-2.0

//! Gives the plugin its commit and release date, as `gst-inspect-1.0` shows them, and the GPU's kernels: their source,
//! and their PTX where there is an nvcc to make it.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the PTX is made for: the oldest GPUs that CUDA 13 knows. Drivers turn it into code for newer ones.
const ARCHITECTURE: &str = "compute_75";

fn main() {
    gst_plugin_version_helper::info();

    // Without these lines Cargo would rebuild the plugin after every edit of any file of the
    // package, documents and scripts included. Only name files that exist: Cargo takes a missing
    // one for a changed one.
    for file in ["build.rs", "Cargo.toml", ".git/logs/HEAD"] {
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        kernels();
    }
}

/// Writes `kernels.cu` and `kernels.ptx` into the output folder; the latter is empty where there is no nvcc.
fn kernels() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    let mut source = String::new();
    for line in read("kernels.cu").lines() {
        match line.strip_prefix("#include \"") {
            Some(rest) => {
                let file = rest.trim_end_matches('"');
                // So that compilers name the file, not the joined one.
                let _ = writeln!(source, "#line 1 \"kernels/{file}\"\n{}", read(file));
            }
            None => {
                let _ = writeln!(source, "{line}");
            }
        }
    }
    let joined = out.join("kernels.cu");
    fs::write(&joined, source).unwrap_or_else(|e| panic!("{}: {e}", joined.display()));
    let ptx = compile(&joined).unwrap_or_default();
    let file = out.join("kernels.ptx");
    fs::write(&file, ptx).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// The text of a file of `kernels/`.
fn read(file: &str) -> String {
    let path = Path::new("kernels").join(file);
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The PTX of `source`, by the nvcc that `NVCC` names or else that of `PATH`. Without any, or when it fails, the plugin
/// compiles its source on the user's machine; setting `NVCC` to nothing asks for that.
fn compile(source: &Path) -> Option<Vec<u8>> {
    println!("cargo:rerun-if-env-changed=NVCC");
    let named = env::var_os("NVCC");
    let nvcc = named.clone().unwrap_or_else(|| "nvcc".into());
    if nvcc.is_empty() {
        return None;
    }
    let ptx = source.with_extension("new.ptx");
    let architecture = format!("--gpu-architecture={ARCHITECTURE}");
    let run = Command::new(&nvcc)
        .args(["--ptx", &architecture, "--std=c++17", "--output-file"])
        .args([&ptx, source])
        .output();
    let why = match run {
        Ok(output) if output.status.success() => match fs::read(&ptx) {
            Ok(text) => return Some(text),
            Err(e) => format!("its output cannot be read: {e}"),
        },
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        // Most machines have none.
        Err(_) if named.is_none() => return None,
        Err(e) => e.to_string(),
    };
    let why = why.lines().next().unwrap_or("it says nothing").to_owned();
    println!(
        "cargo:warning={} cannot compile the kernels, NVRTC will when the plugin runs: {why}",
        nvcc.display()
    );
    None
}
