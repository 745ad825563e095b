//! The GPU's kernels: the same cases on the CPU, on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer, and on a
//! GPU, against float64 numbers of numpy (`tools/reference/kernels.py`), plain f64 arithmetic and the host device.
//!
//! On a machine with a GPU: `cargo test --test kernels -- --ignored --skip nvrtc --skip bandwidth`.

#![cfg(feature = "cuda")]

mod bandwidth;
mod case;
mod frames;
mod gpu;
mod graph;
mod host;
mod interpolations;
mod numbers;
mod tensors;

use gststreamdiffusion::device::cuda::kernels;

/// What GPUs get from NVRTC, and one that is too old for it; `NVRTC_DYLIB_PATH` may say where that is.
#[test]
#[ignore = "needs NVIDIA's run-time compiler"]
fn nvrtc_compiles_the_kernels() {
    for capability in [75, 90, 120] {
        let made = kernels::compile(capability, 13).unwrap();
        println!("{made}");
        assert!(made.contains("machine code"), "{made}");
    }
    // A GPU that is newer than the library gets PTX.
    let made = kernels::compile(999, 13).unwrap();
    assert!(made.contains("PTX"), "{made}");
    let error = kernels::compile(30, 13).unwrap_err().to_string();
    assert!(error.contains("compute capability 3.0"), "{error}");
}
