//! How fast kernels move what they have to move.

use cudarc::driver::{result, sys};
use gststreamdiffusion::device::cuda::kernels::{
    COSINE_PARTIAL_BYTES, CombineRow, CopyRow, CosineRow, Element, FrameToTensor, InterpolateRow,
    Kernel, Row, TensorToFrame,
};
use gststreamdiffusion::device::video::{Colour, PixelFormat, Siting, VideoLayout};
use gststreamdiffusion::error::Result;

use crate::gpu::{Gpu, Memory, gpu};

/// What `launch` takes, in seconds: the median of several runs of many launches. Launches take turns over `sets` sets of
/// buffers, so that caches of that size do not answer.
fn seconds(gpu: &Gpu, sets: usize, mut launch: impl FnMut(usize) -> Result<()>) -> f64 {
    let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
    let stream = gpu.stream.cu_stream();
    let [begin, end] = [(), ()].map(|()| result::event::create(flags).unwrap());
    let many = 200;
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            // SAFETY: the events and the stream are of the current context.
            unsafe {
                result::event::record(begin, stream).unwrap();
                for i in 0..many {
                    launch(i % sets).unwrap();
                }
                result::event::record(end, stream).unwrap();
                gpu.stream.synchronize().unwrap();
                f64::from(result::event::elapsed(begin, end).unwrap()) / 1e3 / many as f64
            }
        })
        .collect();
    for event in [begin, end] {
        // SAFETY: made above, destroyed once.
        unsafe { result::event::destroy(event) }.unwrap();
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn report(name: &str, bytes: usize, seconds: f64) {
    let rate = bytes as f64 / seconds / 1e9;
    println!(
        "{name:56} {:8.2} us  {:8.1} MB  {rate:8.1} GB/s",
        seconds * 1e6,
        bytes as f64 / 1e6
    );
}

/// As many sets of `bytes` as exceed the cache of any GPU.
fn sets(bytes: usize) -> usize {
    (256_000_000 / bytes).clamp(2, 40)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn bandwidth() {
    let gpu = gpu();
    let stream = gpu.stream.cu_stream();
    let k = &gpu.kernels;
    for (name, width, height) in [("1080p", 1920, 1080), ("4K", 3840, 2160)] {
        let len = 3 * width * height;
        let longest = len as u32;
        let count = sets(8 * len);
        let buffers: Vec<[Memory; 3]> = (0..count)
            .map(|_| [(); 3].map(|()| Memory::of(&vec![0x30; 2 * len])))
            .collect();
        // SAFETY (all launches): rows and buffers are as long as they say, and outlive the stream's work.
        let rows: Vec<Memory> = buffers
            .iter()
            .map(|[a, b, out]| {
                let row = CombineRow {
                    a: a.0,
                    b: b.0,
                    out: out.0,
                    ka: 0.5,
                    kb: 0.5,
                    len: longest,
                    ..Default::default()
                };
                Memory::of(CombineRow::bytes(&[row]))
            })
            .collect();
        let time = seconds(gpu, count, |i| unsafe {
            k.launch(Kernel::Combine, stream, rows[i].0, 1, longest)
        });
        report(&format!("combine, 2 operands, {name}"), 6 * len, time);

        let rows: Vec<Memory> = buffers
            .iter()
            .map(|[a, _, out]| Memory::of(CopyRow::bytes(&[CopyRow::plain(a.0, out.0, longest)])))
            .collect();
        let types = (Element::F16, Element::F16);
        let time = seconds(gpu, count, |i| unsafe {
            k.launch(
                Kernel::copy(types.0, types.1),
                stream,
                rows[i].0,
                1,
                longest,
            )
        });
        report(&format!("copy f16 to f16, {name}"), 4 * len, time);

        let work = [
            Memory::new(12),
            Memory::new(COSINE_PARTIAL_BYTES),
            Memory::of(&[0; 16]),
        ];
        let rows: Vec<Memory> = buffers
            .iter()
            .map(|[a, b, _]| {
                let row = CosineRow {
                    a: a.0,
                    b: b.0,
                    out: work[0].0,
                    partial: work[1].0,
                    finished: work[2].0,
                    len: longest,
                    unused: 0,
                };
                Memory::of(CosineRow::bytes(&[row]))
            })
            .collect();
        let time = seconds(gpu, count, |i| unsafe {
            k.launch(Kernel::Cosine, stream, rows[i].0, 1, longest)
        });
        report(&format!("cosine, {name}"), 4 * len, time);
    }
    frames(gpu);
    // The fused step of four slots of 512x512, in one launch: as small as launches get.
    let len = 4 * 64 * 64;
    let latents: Vec<Memory> = (0..20).map(|_| Memory::of(&vec![0x30; 2 * len])).collect();
    let rows: Vec<CombineRow> = (0..4)
        .map(|i| CombineRow {
            a: latents[5 * i].0,
            b: latents[5 * i + 1].0,
            c: latents[5 * i + 2].0,
            d: latents[5 * i + 3].0,
            out: latents[5 * i].0,
            ka: 0.25,
            kb: 0.25,
            kc: 0.25,
            kd: 0.25,
            len: len as u32,
            period: 0,
        })
        .collect();
    let rows = Memory::of(CombineRow::bytes(&rows));
    let time = seconds(gpu, 1, |_| unsafe {
        k.launch(Kernel::Combine, stream, rows.0, 4, len as u32)
    });
    report("fused step, 4 slots of 4x64x64", 4 * 10 * len, time);
    texts(gpu);
}

/// Texts of one chunk, as the architectures have them, and of several.
fn texts(gpu: &Gpu) {
    let stream = gpu.stream.cu_stream();
    let k = &gpu.kernels;
    for (name, tokens, width) in [
        ("SD 1.5", 77, 768),
        ("SD 2", 77, 1024),
        ("SDXL", 77, 2048),
        ("SDXL, four chunks", 308, 2048),
    ] {
        let len = tokens * width;
        // Far from parallel, or there is no arc.
        let end = |end: usize| -> Vec<u8> {
            let numbers = (0..len).map(|i| (1.0 + 0.7 * (i * (end + 2)) as f32).sin());
            numbers.flat_map(f32::to_ne_bytes).collect()
        };
        let ends: Vec<Memory> = (0..2).map(|i| Memory::of(&end(i))).collect();
        for (out, size) in [(Element::F16, 2), (Element::F32, 4)] {
            let to = Memory::new(size * len);
            for (how, spherical) in [("linear", 0), ("on the arc", 1)] {
                let row = InterpolateRow {
                    a: ends[0].0,
                    b: ends[1].0,
                    out: to.0,
                    t: 0.25,
                    width: width as u32,
                    len: len as u32,
                    spherical,
                };
                let row = Memory::of(InterpolateRow::bytes(&[row]));
                // Ends stay in the cache from frame to frame, so they are not taken turns with.
                // SAFETY: all memory is as long as the row says, and outlives the stream's work.
                let time = seconds(gpu, 1, |_| unsafe {
                    k.launch(Kernel::interpolate(out), stream, row.0, 1, tokens as u32)
                });
                let what = format!("interpolate {how} to {size} bytes, {name}");
                report(&what, (8 + size) * len, time);
            }
        }
    }
}

/// Frames of these sizes to tensors and back, and beside each a plain copy that moves as many bytes.
fn frames(gpu: &Gpu) {
    let many = [
        PixelFormat::Nv12,
        PixelFormat::P010,
        PixelFormat::Yuy2,
        PixelFormat::I420,
        PixelFormat::Rgb,
        PixelFormat::Rgba,
    ];
    for (name, size, formats, tensors) in [
        (
            "1080p",
            (1920, 1080),
            &many[..],
            &[(512, 512), (1024, 1024), (1920, 1080)][..],
        ),
        (
            "4K",
            (3840, 2160),
            &many[..],
            &[(512, 512), (1024, 1024), (3840, 2160)][..],
        ),
        (
            "720p",
            (1280, 720),
            &[PixelFormat::Nv12][..],
            &[(512, 512), (1024, 1024)][..],
        ),
        (
            "512x512",
            (512, 512),
            &[PixelFormat::Rgb, PixelFormat::Nv12][..],
            &[(512, 512)][..],
        ),
        (
            "256x256",
            (256, 256),
            &[PixelFormat::Nv12][..],
            &[(512, 512)][..],
        ),
    ] {
        for format in formats {
            let dense = VideoLayout::dense(*format, size.0, size.1).unwrap();
            // High definition has its colour differences on the first of two pixels, unless caps say otherwise.
            let left = dense.sited(Siting {
                on_x: true,
                on_y: false,
            });
            let sites = [("", dense), (" (left)", left)];
            let sited = if *format == PixelFormat::Nv12 { 2 } else { 1 };
            for (site, layout) in &sites[..sited] {
                for to in tensors {
                    both_ways(gpu, &format!("{}{site} {name}", format.name()), layout, *to);
                }
            }
        }
    }
}

fn both_ways(gpu: &Gpu, name: &str, layout: &VideoLayout, size: (usize, usize)) {
    let stream = gpu.stream.cu_stream();
    let k = &gpu.kernels;
    let tensor = Memory::of(&vec![0x30; 6 * size.0 * size.1]);
    let count = sets(layout.size());
    let frames: Vec<Memory> = (0..count)
        .map(|_| Memory::of(&vec![0x80; layout.size()]))
        .collect();
    let what = format!("{name} and {}x{}", size.0, size.1);
    let moved = layout.size() + 6 * size.0 * size.1;
    let plan = FrameToTensor::new(layout, Colour::default(), size).unwrap();
    // SAFETY (both launches): the plans are for these sizes, and the memory outlives the stream's work.
    let time = seconds(gpu, count, |i| unsafe {
        k.frame_to_tensor(stream, &plan, frames[i].0, tensor.0)
    });
    report(&format!("frame_to_tensor {what}"), moved, time);
    let plan = TensorToFrame::new(size, layout, Colour::default()).unwrap();
    let time = seconds(gpu, count, |i| unsafe {
        k.tensor_to_frame(stream, &plan, tensor.0, frames[i].0)
    });
    report(&format!("tensor_to_frame {what}"), moved, time);
    if size == (512, 512) && layout.format() == PixelFormat::Nv12 {
        for rows in [8, 16, 32, 64] {
            let plan = plan.clone().in_strips_of(rows);
            // SAFETY: as above.
            let time = seconds(gpu, count, |i| unsafe {
                k.tensor_to_frame(stream, &plan, tensor.0, frames[i].0)
            });
            report(&format!("the same in strips of {rows} rows"), moved, time);
        }
    }

    let half = moved / 2;
    let count = sets(half);
    let from: Vec<Memory> = (0..count).map(|_| Memory::of(&vec![0x80; half])).collect();
    let to = Memory::new(half);
    let time = seconds(gpu, count, |i| {
        // SAFETY: both are as long as that, and outlive the stream's work.
        unsafe { result::memcpy_dtod_async(to.0, from[i].0, half, stream) }.unwrap();
        Ok(())
    });
    report(&format!("copy of as many bytes, {what}"), 2 * half, time);
}
