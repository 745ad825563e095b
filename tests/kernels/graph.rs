//! Kernels in a CUDA graph, whose rows change between launches.

use cudarc::driver::{result, sys};
use gststreamdiffusion::device::cuda::kernels::{
    COSINE_PARTIAL_BYTES, CombineRow, CosineRow, Kernel, Row,
};
use half::f16;

use crate::gpu::{Memory, gpu};
use crate::numbers::{bytes_of, floats, halves, numbers};

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_captured_graph_goes_on_with_new_rows() {
    let gpu = gpu();
    // Its own: tests beside this one use the other, and would be captured too.
    let own = gpu.context.new_stream().unwrap();
    let stream = own.cu_stream();
    let len = 3 * 512 * 512;
    let [x, y] = [5, 777].map(|seed| numbers(len, seed));
    let [a, b] = [&x, &y].map(|v| Memory::of(&bytes_of(v)));
    let (out, sums) = (Memory::new(2 * len), Memory::new(12));
    let (partial, finished) = (Memory::new(COSINE_PARTIAL_BYTES), Memory::of(&[0; 16]));
    let (combine, cosine) = (Memory::new(64), Memory::new(48));
    let cosine_row = CosineRow {
        a: a.0,
        b: out.0,
        out: sums.0,
        partial: partial.0,
        finished: finished.0,
        len: len as u32,
        unused: 0,
    };
    cosine.write(0, CosineRow::bytes(&[cosine_row]));
    // SAFETY: the rows are written before the graph runs, and all memory outlives it.
    let graph = unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        result::stream::begin_capture(stream, mode).unwrap();
        gpu.kernels
            .launch(Kernel::Combine, stream, combine.0, 1, len as u32)
            .unwrap();
        gpu.kernels
            .launch(Kernel::Cosine, stream, cosine.0, 1, len as u32)
            .unwrap();
        let graph = result::stream::end_capture(stream).unwrap();
        let mut executable = std::ptr::null_mut();
        sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0)
            .result()
            .unwrap();
        sys::cuGraphDestroy(graph).result().unwrap();
        executable
    };
    let mut bits = Vec::new();
    for (ka, kb) in [(1.0, 0.0), (0.5, 0.5), (0.0, -1.0), (0.5, 0.5)] {
        let row = CombineRow {
            a: a.0,
            b: b.0,
            out: out.0,
            ka,
            kb,
            len: len as u32,
            ..Default::default()
        };
        combine.write(0, CombineRow::bytes(&[row]));
        // SAFETY: as above.
        unsafe { sys::cuGraphLaunch(graph, stream) }
            .result()
            .unwrap();
        own.synchronize().unwrap();
        let mixed = halves(&out.read(0, 2 * len));
        let mut right = [0.0; 3];
        for ((x, y), found) in x.iter().zip(&y).zip(&mixed) {
            let exact = f64::from(ka) * x.to_f64() + f64::from(kb) * y.to_f64();
            assert_eq!(*found, f16::from_f64(exact));
            right[0] += x.to_f64() * found.to_f64();
            right[1] += x.to_f64() * x.to_f64();
            right[2] += found.to_f64() * found.to_f64();
        }
        let found = sums.read(0, 12);
        for (found, right) in floats(&found).iter().zip(right) {
            let error = (f64::from(*found) - right).abs();
            assert!(error <= 1e-6 * right.abs().max(100.0), "{found}, {right}");
        }
        bits.push(found);
    }
    assert_eq!(bits[1], bits[3], "the same input gives the same bits");
    // SAFETY: made above, destroyed once.
    unsafe { sys::cuGraphExecDestroy(graph) }.result().unwrap();
}
