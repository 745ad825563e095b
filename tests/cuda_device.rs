//! The CUDA device does what the host device does, in f16: on the stand-in that computes, and on a GPU
//! (`cargo test --test cuda_device -- --ignored`).

#![cfg(feature = "cuda")]

#[cfg(target_os = "linux")]
#[path = "standin/computing.rs"]
mod computing;
#[cfg(target_os = "linux")]
mod standin;
#[macro_use]
#[path = "standin/twins.rs"]
mod twins;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gststreamdiffusion::device::cuda::{Cuda, CudaTensor, Element, Interpolated, Work};
use gststreamdiffusion::device::video::{
    self, Colour, Component, Family, Matrix, PixelFormat, VideoLayout,
};
use gststreamdiffusion::device::{Coefficients, Device, Host, HostTensor, Interpolation, Update};
use gststreamdiffusion::error::Result;
use half::f16;

/// Half a unit in the last place of f16, and what sums of four rounded terms may add to it.
const TOLERANCE: f32 = 2e-3;

/// Values that f16 holds exactly, so that both devices start from the same ones.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| f16::from_f32(next()).to_f32()).collect()
}

#[track_caller]
fn close(found: &HostTensor, expected: &HostTensor) {
    assert_eq!(found.shape(), expected.shape());
    for (i, (f, e)) in found.data().iter().zip(expected.data()).enumerate() {
        let allowed = TOLERANCE * e.abs().max(1.0);
        assert!((f - e).abs() <= allowed, "element {i}: {f}, not {e}");
    }
}

/// The first GPU, or what stands in for it.
fn gpu() -> Cuda {
    Cuda::new(0).expect("a GPU")
}

/// How much of something is done on a GPU, and where a processor stands in for it.
fn less<T>(gpu: &Cuda, on_a_gpu: T, on_the_stand_in: T) -> T {
    match gpu.name() {
        "stand-in" => on_the_stand_in,
        _ => on_a_gpu,
    }
}

twins! {
    [Late Early CopiesEarly]
    tensors_go_up_and_come_down
    rows_are_stacked_and_taken_apart
    what_goes_ahead_leaves_the_rest_as_it_is
    types_are_converted_on_the_way
    pictures_are_blended_as_on_the_host
    noise_is_added_as_on_the_host
    noise_on_an_arc_is_that_of_the_host
    texts_are_blended_as_on_the_host
    the_fused_step_is_that_of_the_host
    similarity_is_that_of_the_host
    pictures_are_compared_behind_what_is_computed
    who_needs_a_frame_waits_for_it
    what_began_is_timed_to_its_end
    frames_become_one_graph_and_stay_right
    threads_do_not_mix_their_frames
    video_frames_come_in_and_go_out
    frames_of_every_format
    frames_that_overlap_are_not_mixed_up
    what_cannot_be_had_is_told
}

const SHAPES: [[usize; 4]; 3] = [[1, 4, 64, 64], [2, 4, 9, 7], [3, 1, 1, 1]];

fn tensors_go_up_and_come_down(gpu: &Cuda) {
    for element in [Element::F16, Element::F32, Element::I64, Element::I32] {
        let mut data = values(1000, 1);
        if matches!(element, Element::I64 | Element::I32) {
            data.iter_mut().for_each(|x| *x = (*x * 1000.0).trunc());
        }
        let tensor = gpu.upload_as(&[10, 100], &data, element).unwrap();
        let back = gpu.download(&tensor).unwrap();
        assert_eq!((back.shape(), back.data()), (&[10, 100][..], &data[..]));
    }
    assert!(gpu.upload_as(&[3], &[1.0], Element::F32).is_err());
}

fn rows_are_stacked_and_taken_apart(gpu: &Cuda) {
    let parts: Vec<Vec<f32>> = (0..3).map(|i| values(2 * 5 * 7, i)).collect();
    let tensors = |i: &Vec<f32>| gpu.upload(&[2, 5, 7], i).unwrap();
    let stacked = gpu.stack(parts.iter().map(tensors).collect()).unwrap();
    assert_eq!(gpu.download(&stacked).unwrap().data(), parts.concat());
    let rows = gpu.unstack(stacked);
    assert_eq!(rows.len(), 6);
    let last = gpu.download(&rows[5]).unwrap();
    assert_eq!(last.shape(), [1, 5, 7]);
    assert_eq!(last.data(), &parts[2][35..]);
    // Odd rows begin where no vector can be read.
    let again = gpu.stack(vec![rows[5].clone(), rows[0].clone()]).unwrap();
    let expected = [&parts[2][35..], &parts[0][..35]].concat();
    assert_eq!(gpu.download(&again).unwrap().data(), expected);
}

fn what_goes_ahead_leaves_the_rest_as_it_is(gpu: &Cuda) {
    let (first, other) = (values(1003, 3), values(1003, 4));
    let tensor = |data: &[f32]| gpu.upload_as(&[1003], data, Element::F32).unwrap();
    let copy = |from: &CudaTensor| {
        let to = gpu.empty(&[1003], Element::F32).unwrap();
        gpu.copy_each(&[(from.clone(), to.clone())]).map(|()| to)
    };
    // Noted down, not done.
    let half_way = copy(&tensor(&first)).unwrap();
    let launched = gpu.launches();
    let ahead = gpu.ahead(|| copy(&tensor(&other))).unwrap();
    assert_eq!(gpu.launches(), launched, "the other list was done too");
    assert_eq!(gpu.ahead(|| gpu.download(&ahead)).unwrap().data(), other);
    // What fails is not done, nor is it done by the next one, and whoever relied on it is told.
    let before = gpu.failures();
    let kept = tensor(&other);
    let failed = gpu.ahead(|| {
        gpu.copy(&[&tensor(&first)], &kept, 1.0, 0.0)?;
        gpu.copy(
            &[&tensor(&first)],
            &gpu.empty(&[7], Element::F32)?,
            1.0,
            0.0,
        )
    });
    assert!(failed.is_err());
    assert_eq!(gpu.failures(), before + 1);
    assert_eq!(gpu.ahead(|| gpu.download(&kept)).unwrap().data(), other);
    assert_eq!(gpu.launches(), launched);
    assert_eq!(gpu.download(&half_way).unwrap().data(), first);
}

fn types_are_converted_on_the_way(gpu: &Cuda) {
    let data = values(1003, 3);
    let single = gpu.upload_as(&[1003], &data, Element::F32).unwrap();
    let half = gpu.empty(&[1003], Element::F16).unwrap();
    let back = gpu.empty(&[1003], Element::F32).unwrap();
    gpu.copy(&[&single], &half, 2.0, 0.5).unwrap();
    gpu.copy(&[&half], &back, 0.5, -0.25).unwrap();
    close(
        &gpu.download(&back).unwrap(),
        &HostTensor::new(&[1003], data),
    );
    let whole = gpu.upload_as(&[4], &[1.0; 4], Element::I64).unwrap();
    assert!(gpu.copy(&[&whole], &back, 1.0, 0.0).is_err());
}

fn pictures_are_blended_as_on_the_host(gpu: &Cuda) {
    for shape in SHAPES {
        let count = shape.iter().product::<usize>();
        let over: Vec<f32> = values(count, 8).iter().map(|x| 2.0 * x).collect();
        let under = values(count, 9);
        let shares: Vec<f32> = (0..shape[0]).map(|i| 0.3 * i as f32).collect();
        let on_host = Host.blend(
            &shares,
            &Host.upload(&shape, &over).unwrap(),
            &Host.upload(&shape, &under).unwrap(),
        );
        let on_gpu = gpu.blend(
            &shares,
            &gpu.upload(&shape, &over).unwrap(),
            &gpu.upload(&shape, &under).unwrap(),
        );
        close(&gpu.download(&on_gpu.unwrap()).unwrap(), &on_host.unwrap());
        let one = gpu.upload(&shape, &over).unwrap();
        assert!(gpu.blend(&[0.5; 9], &one, &one).is_err());
    }
}

fn noise_is_added_as_on_the_host(gpu: &Cuda) {
    for shape in SHAPES {
        let count = shape.iter().product::<usize>();
        let one = [1, shape[1], shape[2], shape[3]];
        let latents = values(count, 5);
        for noise_shape in [shape, one] {
            let noise = values(noise_shape.iter().product(), 6);
            let on_host = Host.add_noise(
                0.7,
                &Host.upload(&shape, &latents).unwrap(),
                0.7,
                &Host.upload(&noise_shape, &noise).unwrap(),
            );
            let on_gpu = gpu.add_noise(
                0.7,
                &gpu.upload(&shape, &latents).unwrap(),
                0.7,
                &gpu.upload(&noise_shape, &noise).unwrap(),
            );
            close(&gpu.download(&on_gpu.unwrap()).unwrap(), &on_host.unwrap());
        }
    }
}

fn noise_on_an_arc_is_that_of_the_host(gpu: &Cuda) {
    for shape in SHAPES {
        let count = shape.iter().product();
        let (a, b) = (values(count, 21), values(count, 22));
        let [x, y] = [&a, &b].map(|data| gpu.upload(&shape, data).unwrap());
        for share in [0.0, 0.25, 0.5, 1.0] {
            let found = gpu.download(&gpu.slerp(share, &x, &y).unwrap()).unwrap();
            let [x, y] = [&a, &b].map(|data| Host.upload(&shape, data).unwrap());
            close(&found, &Host.slerp(share, &x, &y).unwrap());
        }
        let other = gpu.upload(&[2, count], &[a.clone(), b.clone()].concat());
        assert!(gpu.slerp(0.5, &x, &other.unwrap()).is_err());
    }
}

/// Tensors of several shapes and types at once; again with other shares, when it is a graph.
fn texts_are_blended_as_on_the_host(gpu: &Cuda) {
    const TEXTS: [(&[usize], Element); 4] = [
        (&[1, 5, 24], Element::F16),
        (&[1, 37], Element::F32),
        (&[2, 3, 7], Element::F16),
        (&[1, 0, 8], Element::F32),
    ];
    let ends = TEXTS.map(|(shape, _)| {
        let count = shape.iter().product();
        [31, 32].map(|seed| HostTensor::new(shape, values(count, seed)))
    });
    let up = |end: &HostTensor| {
        gpu.upload_as(end.shape(), end.data(), Element::F32)
            .unwrap()
    };
    let on_gpu = ends.each_ref().map(|ends| ends.each_ref().map(up));
    let launched = gpu.launches();
    for i in 0..8 {
        let how = [Interpolation::Linear, Interpolation::Spherical];
        let of = |text: usize| (f64::from(i) / 7.0, how[(i as usize + text) % 2]);
        let wanted = on_gpu.iter().zip(TEXTS).enumerate();
        let wanted: Vec<_> = wanted
            .map(|(text, ([from, to], (shape, element)))| Interpolated {
                from: from.clone(),
                to: to.clone(),
                share: of(text).0,
                how: of(text).1,
                // Whatever its shape: as long as they are.
                out: gpu.empty(&[shape.iter().product()], element).unwrap(),
            })
            .collect();
        gpu.interpolate(&wanted).unwrap();
        for (text, (wanted, [a, b])) in wanted.iter().zip(&ends).enumerate() {
            let (share, how) = of(text);
            let found = gpu.download(&wanted.out).unwrap();
            let expected = how.between(a, b, share).into_data();
            close(&found, &HostTensor::new(&[expected.len()], expected));
        }
    }
    assert!(gpu.launches().graphs > launched.graphs);

    // What is noted down is kept until it is done, whoever else lets go of it.
    let [from, to] = ends[0].each_ref().map(up);
    let out = gpu.empty(from.shape(), Element::F32).unwrap();
    let wanted = Interpolated {
        from,
        to,
        share: 0.5,
        how: Interpolation::Linear,
        out: out.clone(),
    };
    gpu.interpolate(&[wanted]).unwrap();
    let others: Vec<_> = (0..2).map(|_| up(&ends[0][0])).collect();
    let [a, b] = &ends[0];
    close(
        &gpu.download(&out).unwrap(),
        &Interpolation::Linear.between(a, b, 0.5),
    );
    drop(others);

    let [[from, to], [other, _], ..] = &on_gpu;
    let half = gpu.upload(from.shape(), ends[0][0].data()).unwrap();
    let out = |count, element| gpu.empty(&[count], element).unwrap();
    for (from, to, out) in [
        (from, other, out(120, Element::F16)),
        (from, to, out(119, Element::F16)),
        (from, to, out(120, Element::I64)),
        (from, &half, out(120, Element::F16)),
    ] {
        let wanted = Interpolated {
            from: from.clone(),
            to: to.clone(),
            share: 0.5,
            how: Interpolation::Linear,
            out,
        };
        let error = gpu.interpolate(&[wanted]).unwrap_err().to_string();
        assert!(error.contains("lies between"), "{error}");
    }
    assert!(Cuda::interpolates(Element::F16) && !Cuda::interpolates(Element::I32));
}

/// Three slots of one shape through `steps` fused steps on `device`.
fn stepped<D: Device>(device: &D, shape: [usize; 4], steps: usize) -> Result<Vec<D::Tensor>> {
    let count = shape.iter().product::<usize>();
    let tensor = |seed| device.upload(&shape, &values(count, seed));
    let map = [1, shape[1], shape[2], shape[3]];
    let noise = device.upload(&map, &values(map.iter().product(), 40))?;
    let mut slots = (0..3).map(|i| tensor(10 + i)).collect::<Result<Vec<_>>>()?;
    for step in 0..steps {
        let given = |i: u32| tensor(100 * step as u32 + i);
        let predictions = (0..3).map(given).collect::<Result<Vec<_>>>()?;
        let reference = given(7)?;
        let mut updates = Vec::new();
        for (i, (x, prediction)) in slots.iter_mut().zip(&predictions).enumerate() {
            let k = Coefficients {
                sample: 0.9 - 0.1 * step as f32,
                prediction: -0.3 * i as f32,
                reference: 0.2,
                noise: 0.4,
            };
            updates.push(Update {
                k,
                x,
                prediction,
                reference: (i != 1).then_some(&reference),
                noise: (i != 2).then_some(&noise),
            });
        }
        device.step(updates)?;
    }
    Ok(slots)
}

fn the_fused_step_is_that_of_the_host(gpu: &Cuda) {
    for shape in SHAPES {
        let expected = stepped(&Host, shape, 4).unwrap();
        let found = stepped(gpu, shape, 4).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            close(&gpu.download(found).unwrap(), expected);
        }
    }
}

fn similarity_is_that_of_the_host(gpu: &Cuda) {
    for count in [1, 7, 3 * 256 * 256, less(gpu, 3 * 1920 * 1080, 100_003)] {
        let a = values(count, 20);
        // Nearly the same, as frames of a still scene are.
        let b: Vec<f32> = (a.iter().zip(values(count, 21)))
            .map(|(a, e)| f16::from_f32(a + 0.05 * e).to_f32())
            .collect();
        let shape = [1, 1, 1, count];
        let (on_a, on_b) = (
            gpu.upload(&shape, &a).unwrap(),
            gpu.upload(&shape, &b).unwrap(),
        );
        let expected = Host
            .compare(
                &Host.upload(&shape, &a).unwrap(),
                &Host.upload(&shape, &b).unwrap(),
            )
            .unwrap();
        let cosine = |a, b| gpu.cosine(gpu.compare(a, b).unwrap()).unwrap();
        for _ in 0..3 {
            let found = cosine(&on_a, &on_b);
            assert!(
                (found - expected).abs() < 1e-5,
                "{count}: {found}, not {expected}"
            );
        }
        let zero = gpu.upload(&shape, &vec![0.0; count]).unwrap();
        assert_eq!(cosine(&zero, &zero), 1.0);
        assert_eq!(cosine(&on_a, &zero), 0.0);
    }
}

/// The sum of two tensors, noted down.
fn sum(gpu: &Cuda, a: &CudaTensor, b: &CudaTensor) -> CudaTensor {
    gpu.add_noise(1.0, a, 1.0, b).unwrap()
}

fn pictures_are_compared_behind_what_is_computed(gpu: &Cuda) {
    let shape = [1, 3, 40, 24];
    let upload = |x: &[f32]| gpu.upload(&shape, x).unwrap();
    let pictures: Vec<Vec<f32>> = (0..3).map(|seed| values(2880, seed)).collect();
    let [a, b, c] = [0, 1, 2].map(|i| upload(&pictures[i]));
    let expected = |x: &[f32], y: &[f32]| {
        let host = |x: &[f32]| Host.upload(&shape, x).unwrap();
        Host.compare(&host(x), &host(y)).unwrap()
    };
    let close = |found: f32, expected: f32| {
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    };
    let mut settled = 0;
    for round in 0..50 {
        let computed = sum(gpu, &a, &b);
        let submitted = gpu.submit().unwrap();
        // What is not noted down any more is not waited for, in whatever order they are read, if they are.
        let comparisons = [(&a, &b), (&a, &c), (&b, &c)].map(|(x, y)| gpu.compare(x, y).unwrap());
        let [ab, ac, unread] = comparisons;
        if round % 5 == 4 {
            drop(unread);
        } else {
            close(
                gpu.cosine(unread).unwrap(),
                expected(&pictures[1], &pictures[2]),
            );
        }
        close(
            gpu.cosine(ac).unwrap(),
            expected(&pictures[0], &pictures[2]),
        );
        close(
            gpu.cosine(ab).unwrap(),
            expected(&pictures[0], &pictures[1]),
        );
        // They come behind it.
        assert!(submitted.is_over());
        let sums = pictures[0].iter().zip(&pictures[1]).map(|(a, b)| a + b);
        let found = gpu.download(&computed).unwrap();
        let sums: Vec<f32> = sums.collect();
        self::close(&found, &HostTensor::new(&shape, sums));
        // What they are made of may be noted down only, and is of no use to anybody else.
        let noted = gpu.compare(&sum(gpu, &a, &c), &sum(gpu, &b, &c)).unwrap();
        let with_c = |x: &[f32]| -> Vec<f32> {
            let sums = x.iter().zip(&pictures[2]);
            sums.map(|(x, c)| f16::from_f32(x + c).to_f32()).collect()
        };
        let sums = (with_c(&pictures[0]), with_c(&pictures[1]));
        close(gpu.cosine(noted).unwrap(), expected(&sums.0, &sums.1));
        gpu.finish().unwrap();
        if round == 10 {
            settled = gpu.allocated();
        }
    }
    assert_eq!(gpu.allocated(), settled, "memory grows");
    let shorter = gpu.upload(&[1, 3, 1, 1], &[0.0; 3]).unwrap();
    assert!(gpu.compare(&a, &shorter).is_err());
}

fn who_needs_a_frame_waits_for_it(gpu: &Cuda) {
    let shape = [1, 4, 32, 32];
    let one = gpu.upload(&shape, &[1.0; 4096]).unwrap();
    let mut expected = 0.0;
    let mut total = gpu.upload(&shape, &[0.0; 4096]).unwrap();
    for round in 0..20 {
        gpu.begin().unwrap();
        total = sum(gpu, &total, &one);
        expected += 1.0;
        let submitted = gpu.submit().unwrap();
        // The next one is noted down meanwhile, and keeps what it has.
        let next = sum(gpu, &total, &one);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let took = submitted.wait().unwrap();
                assert!(
                    took.is_some_and(|took| took.as_secs_f64() < 1.0),
                    "{took:?}"
                );
                assert!(submitted.is_over());
            });
        });
        drop(submitted);
        assert!(
            gpu.submit().unwrap().wait().unwrap().is_none(),
            "nobody began"
        );
        let found = gpu.download(&next).unwrap();
        assert!(
            found.data().iter().all(|x| *x == expected + 1.0),
            "round {round}"
        );
    }
}

/// Also where something of it has to be on the GPU before the rest.
fn what_began_is_timed_to_its_end(gpu: &Cuda) {
    let [a, b] = [1, 2].map(|seed| gpu.upload(&[1, 4, 32, 32], &values(4096, seed)).unwrap());
    for _ in 0..3 {
        gpu.begin().unwrap();
        let comparison = gpu.compare(&sum(gpu, &a, &b), &b).unwrap();
        gpu.cosine(comparison).unwrap();
        let kept = sum(gpu, &a, &b);
        let submitted = gpu.submit().unwrap();
        assert!(submitted.wait().unwrap().is_some());
        drop(kept);
        assert!(gpu.so_far().unwrap().wait().unwrap().is_none());
    }
    gpu.finish().unwrap();
}

/// On a stream that does nothing until somebody waits.
#[cfg(target_os = "linux")]
#[test]
fn neither_submitting_nor_comparing_waits() {
    let late = [computing::When::Late];
    computing::run("neither_submitting_nor_comparing_waits", &[], &late, || {
        let gpu = gpu();
        let [a, b] = [1, 2].map(|seed| gpu.upload(&[1, 4, 32, 32], &values(4096, seed)).unwrap());
        gpu.begin().unwrap();
        let both = sum(&gpu, &a, &b);
        let submitted = gpu.submit().unwrap();
        let comparison = gpu.compare(&a, &b).unwrap();
        assert!(!submitted.is_over());
        gpu.cosine(comparison).unwrap();
        assert!(submitted.is_over());
        drop(both);
    });
}

/// An engine that copies its input to its output: at fixed addresses, as engines are.
struct Echo {
    gpu: Cuda,
    from: CudaTensor,
    to: CudaTensor,
    runs: AtomicUsize,
}

impl Work for Echo {
    fn enqueue(&self) -> Result<()> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let stream = self.gpu.stream().cast();
        // SAFETY: both tensors live as long as this, and have one size.
        unsafe {
            let (to, from) = (self.to.pointer(), self.from.pointer());
            cudarc::driver::result::memcpy_dtod_async(to, from, self.from.bytes(), stream)
        }
        .map_err(|e| gststreamdiffusion::error::Error::engine("echo", e.to_string()))
    }

    fn capturable(&self) -> bool {
        self.runs.load(Ordering::Relaxed) >= 2
    }
}

/// Where the noise of [`frame`] comes from.
const NOISE: u32 = 77;

/// A frame: in, through the engine, a step, out.
fn frame(gpu: &Cuda, engine: &Arc<Echo>, noise: &CudaTensor, seed: u32) -> (Vec<f32>, Vec<f32>) {
    let shape = [1, 4, 32, 32];
    let data = values(4096, seed);
    let factor = 0.1 * (seed % 7) as f32;
    let picture = gpu.upload(&shape, &data).unwrap();
    let (mut x, took) = gpu.timed(0, || gpu.add_noise(factor, &picture, 0.5, noise).unwrap());
    assert!(took.is_none_or(|t| t.as_secs_f64() < 1.0));
    gpu.copy(&[&x], &engine.from, 1.0, 0.0).unwrap();
    gpu.run(engine.clone()).unwrap();
    let prediction = gpu.empty(&shape, Element::F16).unwrap();
    gpu.copy(&[&engine.to], &prediction, 1.0, 0.0).unwrap();
    let k = Coefficients {
        sample: 0.5,
        prediction: factor,
        ..Coefficients::default()
    };
    gpu.step(vec![Update {
        k,
        x: &mut x,
        prediction: &prediction,
        reference: None,
        noise: None,
    }])
    .unwrap();
    let expected = data.iter().zip(values(4096, NOISE)).map(|(d, e)| {
        let x = factor * d + 0.5 * e;
        0.5 * x + factor * x
    });
    let expected = expected.collect();
    (gpu.download(&x).unwrap().into_data(), expected)
}

fn frames_become_one_graph_and_stay_right(gpu: &Cuda) {
    let engine = Arc::new(Echo {
        from: gpu.empty(&[1, 4, 32, 32], Element::F16).unwrap(),
        to: gpu.empty(&[1, 4, 32, 32], Element::F16).unwrap(),
        gpu: gpu.clone(),
        runs: AtomicUsize::new(0),
    });
    let noise = gpu.upload(&[1, 4, 32, 32], &values(4096, NOISE)).unwrap();
    let mut after_warming_up = 0;
    for seed in 0..100 {
        let (found, expected) = frame(gpu, &engine, &noise, seed);
        close(
            &HostTensor::new(&[4096], found),
            &HostTensor::new(&[4096], expected),
        );
        if seed == 10 {
            after_warming_up = gpu.allocated();
        }
    }
    let launches = gpu.launches();
    assert!(launches.graphs >= 90, "{launches:?}, {:?}", gpu.refusal());
    // Replayed, an engine's code on the CPU does not run.
    assert!(engine.runs.load(Ordering::Relaxed) < 10);
    assert_eq!(gpu.allocated(), after_warming_up, "memory grows");
}

fn threads_do_not_mix_their_frames(gpu: &Cuda) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let engine = Arc::new(Echo {
                    from: gpu.empty(&[1, 4, 32, 32], Element::F16).unwrap(),
                    to: gpu.empty(&[1, 4, 32, 32], Element::F16).unwrap(),
                    gpu: gpu.clone(),
                    runs: AtomicUsize::new(0),
                });
                let noise = gpu.upload(&[1, 4, 32, 32], &values(4096, NOISE)).unwrap();
                for seed in 0..50 {
                    let (found, expected) = frame(gpu, &engine, &noise, 1000 * thread + seed);
                    close(
                        &HostTensor::new(&[4096], found),
                        &HostTensor::new(&[4096], expected),
                    );
                }
                gpu.release_thread();
            });
        }
    });
}

fn video_frames_come_in_and_go_out(gpu: &Cuda) {
    let (width, height) = (70, 38);
    let layout = VideoLayout::dense(PixelFormat::Rgb, width, height).unwrap();
    let bytes: Vec<u8> = (0..layout.size()).map(|i| (i * 7 % 251) as u8).collect();
    let picture = (gpu.import_host(&bytes, &layout, Colour::FULL_RGB, (width, height))).unwrap();
    let values = gpu.download(&picture).unwrap();
    assert_eq!(values.shape(), [1, 3, height, width]);
    let expected = f32::from(bytes[3]) / 255.0 * 2.0 - 1.0;
    assert!((values.data()[1] - expected).abs() < 1e-3);
    let mut back = vec![0; layout.size()];
    gpu.export_host(&picture, &mut back, &layout, Colour::FULL_RGB)
        .unwrap();
    for y in 0..height {
        let row = y * layout.strides()[0]..y * layout.strides()[0] + 3 * width;
        assert_eq!(back[row.clone()], bytes[row]);
    }
    let short = gpu.import_host(&bytes[1..], &layout, Colour::FULL_RGB, (width, height));
    assert!(short.unwrap_err().to_string().contains("expected"));
}

/// Where the samples of a component begin.
fn samples(layout: &VideoLayout, component: &Component) -> Vec<usize> {
    let rows = layout.height().div_ceil(1 << component.sub_y);
    let row = layout.width().div_ceil(1 << component.sub_x);
    let start = layout.offsets()[component.plane] + component.offset;
    let stride = layout.strides()[component.plane];
    let row = |y: usize| (0..row).map(move |x| start + y * stride + x * component.step);
    (0..rows).flat_map(row).collect()
}

/// A frame of one colour in every format, with gaps between rows and planes: its numbers come in, and its codes go out.
fn frames_of_every_format(gpu: &Cuda) {
    let (width, height) = (30, 17);
    for format in PixelFormat::ALL {
        let colour = match format.family() {
            Family::Rgb => Colour::FULL_RGB,
            Family::Yuv | Family::Gray => Colour {
                matrix: Matrix::Bt709,
                full_range: false,
            },
        };
        let dense = VideoLayout::dense(format, width, height).unwrap();
        let strides = dense.strides().map(|stride| stride + 12);
        let offsets = std::array::from_fn(|i| 20 + 4000 * i);
        let layout = VideoLayout::new(format, width, height, offsets, strides, 12_000).unwrap();
        // Ten bits are the upper ones of two bytes.
        let (bytes, unit) = match format.bits() {
            8 => (1, 1),
            _ => (2, 1 << 8),
        };
        let code = |frame: &[u8], at: usize| {
            let bytes = frame[at..at + bytes].iter().rev();
            bytes.fold(0, |code, byte| code << 8 | i32::from(*byte))
        };
        let colours = [120, 90, 160i32];
        let mut frame = vec![0x5a; layout.size()];
        for (component, colour) in format.components().iter().zip(colours) {
            for at in samples(&layout, component) {
                let code = (colour * unit).to_le_bytes();
                frame[at..at + bytes].copy_from_slice(&code[..bytes]);
            }
        }
        let codes = colours.map(|colour| (colour * if bytes == 2 { 4 } else { 1 }) as f32);
        let expected = video::to_tensor(format, colour).map(|[a, b, c, d]| {
            let value = a * codes[0] + b * codes[1] + c * codes[2] + d;
            value.clamp(-1.0, 1.0)
        });
        for size in [(width, height), (46, 10)] {
            let picture = gpu.import_host(&frame, &layout, colour, size).unwrap();
            let values = gpu.download(&picture).unwrap();
            for (i, value) in values.data().iter().enumerate() {
                let apart = (value - expected[i / (size.0 * size.1)]).abs();
                assert!(apart < 1e-3, "{format:?}, {size:?}: {apart} away at {i}");
            }
            let mut back = vec![0x33; layout.size()];
            (gpu.export_host(&picture, &mut back, &layout, colour)).unwrap();
            for (component, colour) in format.components().iter().zip(colours) {
                for at in samples(&layout, component) {
                    let apart = (code(&back, at) - colour * unit).abs();
                    assert!(apart <= unit, "{format:?}: {apart} away at byte {at}");
                }
            }
            // Before the first plane, and behind the first row.
            let row = layout.plane_size(&format.planes()[0]).0;
            for gap in [0..20, 20 + row..20 + strides[0]] {
                assert_eq!(back[gap.clone()], vec![0x33; gap.len()], "{format:?}");
            }
        }
    }
}

/// One thread has frames copied up, one takes them in and begins to hand them out, one takes them.
fn frames_that_overlap_are_not_mixed_up(gpu: &Cuda) {
    // A pixel takes long on the stand-in.
    let (size, picture_size) = less(gpu, ((640, 480), (512, 512)), ((80, 60), (64, 64)));
    let frames = less(gpu, 300, 100);
    let layout = &VideoLayout::dense(PixelFormat::Rgb, size.0, size.1).unwrap();
    let grey = |frame: u32| (20 + frame % 200) as u8;
    let (up, arriving) = std::sync::mpsc::sync_channel(3);
    let (done, leaving) = std::sync::mpsc::sync_channel(3);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for frame in 0..frames {
                let bytes = vec![grey(frame); layout.size()];
                up.send(gpu.upload_frame(&bytes, layout).unwrap()).unwrap();
            }
        });
        scope.spawn(move || {
            let engine = gpu
                .empty(&[1, 3, picture_size.1, picture_size.0], Element::F16)
                .unwrap();
            for upload in arriving {
                let picture = gpu.import_upload(upload, Colour::FULL_RGB, picture_size);
                let picture = picture.unwrap();
                let shown = gpu.empty(picture.shape(), Element::F16).unwrap();
                gpu.copy(&[&picture], &engine, 1.0, 0.0).unwrap();
                gpu.copy(&[&engine], &shown, 1.0, 0.0).unwrap();
                gpu.finish().unwrap();
                let download = gpu.download_frame(&shown, layout, Colour::FULL_RGB);
                done.send(download.unwrap()).unwrap();
            }
            gpu.release_thread();
        });
        scope.spawn(move || {
            let mut bytes = vec![0; layout.size()];
            for (frame, download) in (0..).zip(leaving) {
                download.finish(&mut bytes).unwrap();
                assert!(bytes.iter().all(|b| *b == grey(frame)), "frame {frame}");
            }
        });
    });
}

/// In a process of its own, whose context it breaks: a kernel reads a frame where there is nothing. Whether there is another
/// context after that is for the driver to say: of CUDA 13.0, on an H100, there is none.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_lost_context_is_followed_by_a_new_one_or_by_what_helps() {
    const VARIABLE: &str = "STREAMDIFFUSION_TEST_LOSES_CONTEXT";
    if std::env::var_os(VARIABLE).is_none() {
        // It has to end by itself, with all that drivers do then.
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "--nocapture",
                "a_lost_context_is_followed_by_a_new_one_or_by_what_helps",
            ])
            .env(VARIABLE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let layout = VideoLayout::dense(PixelFormat::Rgb, 64, 64).unwrap();
    let lost = gpu();
    let kept = lost.upload_as(&[100], &values(100, 4), Element::F16);
    let kept = kept.unwrap();
    // SAFETY: there is no memory; what the driver makes of that is what is tried.
    let picture = unsafe { lost.import_device(0x10, &layout, Colour::FULL_RGB, (64, 64)) };
    let message = lost.finish().unwrap_err().to_string();
    for part in ["ILLEGAL_ADDRESS", "NULL"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(lost.check().is_err());
    assert!(lost.download(&kept).is_err());
    let message = Cuda::new(0).map(drop).unwrap_err().to_string();
    assert!(message.contains("stop all that uses it"), "{message}");
    drop((picture, kept, lost));
    // The same answer each time.
    let mut answers = Vec::new();
    for _ in 0..3 {
        match Cuda::new(0) {
            Ok(gpu) => {
                let data = values(100, 3);
                let tensor = gpu.upload_as(&[100], &data, Element::F16).unwrap();
                assert_eq!(gpu.download(&tensor).unwrap().data(), data);
                answers.push("a context that works".to_owned());
            }
            Err(error) => {
                let message = error.to_string();
                for part in [
                    "GPU 0 failed before",
                    "ILLEGAL_ADDRESS",
                    "start the program again",
                ] {
                    assert!(message.contains(part), "{message}");
                }
                answers.push(message);
            }
        }
    }
    println!("after an illegal address: {}", answers[0]);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

fn what_cannot_be_had_is_told(gpu: &Cuda) {
    let count = Cuda::count().unwrap();
    let error = Cuda::new(count).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("device-id"), "{error}");
    let error = gpu.empty(&[1 << 42], Element::F32).unwrap_err().to_string();
    assert!(error.contains("are free"), "{error}");
    // It goes on after that.
    assert_eq!(
        gpu.download(&gpu.upload(&[2], &[1.0, 2.0]).unwrap())
            .unwrap()
            .data(),
        [1.0, 2.0]
    );
}

/// Runs everywhere: with a GPU or without one, there is none with such a number.
#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let error = Cuda::new(1000).map(|_| ()).unwrap_err().to_string();
    match Cuda::count() {
        Ok(count) => assert!(error.contains("there is no GPU 1000"), "{count}: {error}"),
        Err(missing) => assert_eq!(error, missing.to_string()),
    }
}
