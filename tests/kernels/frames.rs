//! Kernels between video frames and tensors.

use std::sync::LazyLock;

use gststreamdiffusion::device::HostTensor;
use gststreamdiffusion::device::cuda::kernels::{FrameToTensor, TensorToFrame};
use gststreamdiffusion::device::host::pixels;
use gststreamdiffusion::device::video::{Colour, Matrix, PixelFormat, Siting, VideoLayout};
use half::f16;

use crate::case::{Case, Launch, Runner, address, everywhere};
use crate::numbers::{self, Random, bytes_of, halves, hashed, numbers};

everywhere! {
    frames_to_tensors tensors_to_frames like_the_host_device what_is_no_number there_and_back
}

const MARK: u8 = 0xA5;

/// One line of the reference script's list, and its results.
struct Golden {
    name: String,
    format: PixelFormat,
    colour: Colour,
    siting: Siting,
    from: (usize, usize),
    to: (usize, usize),
    /// Seed of what the input is made of.
    seed: u64,
    /// Values of the tensor that a frame of size `from` becomes, at size `to`.
    tensor: Vec<f64>,
    /// Codes of the samples of the dense frame of size `to` that a tensor of size `from` becomes; `None` where none is.
    codes: Vec<Option<f64>>,
}

fn size(text: &str) -> (usize, usize) {
    let (width, height) = text.split_once('x').unwrap();
    (width.parse().unwrap(), height.parse().unwrap())
}

static GOLDEN: LazyLock<Vec<Golden>> = LazyLock::new(|| {
    let results = numbers::frames();
    let mut tensors = results.i16("frame_to_tensor").into_iter();
    let mut codes = results.u16("tensor_to_frame").into_iter();
    let lines = include_str!("../data/kernels/frames.txt").lines();
    let golden = lines
        .enumerate()
        .map(|(i, line)| {
            let words: Vec<&str> = line.split(' ').collect();
            let format = PixelFormat::from_name(words[0]).unwrap();
            let matrix = match words[1] {
                "rgb" => Matrix::Rgb,
                "fcc" => Matrix::Fcc,
                "bt601" => Matrix::Bt601,
                "bt709" => Matrix::Bt709,
                "smpte240m" => Matrix::Smpte240m,
                "bt2020" => Matrix::Bt2020,
                other => panic!("{other}"),
            };
            let (from, to) = (size(words[3]), size(words[4]));
            let values = tensors.by_ref().take(3 * to.0 * to.1);
            let tensor = values.map(|v| f64::from(v) / 32767.0).collect();
            let layout = VideoLayout::dense(format, to.0, to.1).unwrap();
            let samples = codes.by_ref().take(layout.size() / bytes(format));
            Golden {
                name: line.to_owned(),
                format,
                colour: Colour {
                    matrix,
                    full_range: words[2] == "full",
                },
                siting: Siting {
                    on_x: words[5].contains("left"),
                    on_y: words[5].contains("top"),
                },
                from,
                to,
                seed: 100_003 * i as u64,
                tensor,
                codes: samples
                    .map(|c| (c != u16::MAX).then(|| f64::from(c) / 60.0))
                    .collect(),
            }
        })
        .collect();
    assert!(tensors.next().is_none() && codes.next().is_none());
    golden
});

/// Bytes of a sample.
fn bytes(format: PixelFormat) -> usize {
    if format.bits() > 8 { 2 } else { 1 }
}

/// How a frame lies in memory: as dense as can be, with gaps, or at odd addresses.
#[derive(Clone, Copy, Debug)]
enum Memory {
    Dense,
    Padded,
    Odd,
}

/// A layout, what the memory holds beside samples, and the skew of its buffer.
fn layout(format: PixelFormat, (w, h): (usize, usize), memory: Memory) -> (VideoLayout, usize) {
    let dense = VideoLayout::dense(format, w, h).unwrap();
    let (padding, gap, skew) = match memory {
        Memory::Dense => return (dense, 0),
        Memory::Padded => (64, 32, 0),
        // Of two bytes a sample, addresses stay even.
        Memory::Odd => (5 * bytes(format), 3 * bytes(format), bytes(format)),
    };
    let (mut offsets, mut strides, mut end) = ([0; 4], [0; 4], gap);
    for (i, plane) in format.planes().iter().enumerate() {
        let (row, rows) = dense.plane_size(plane);
        offsets[i] = end;
        strides[i] = row + padding;
        // Nothing after the last row.
        end += strides[i] * (rows - 1) + row;
        if i + 1 < format.planes().len() {
            end += gap;
        }
    }
    let layout = VideoLayout::new(format, w, h, offsets, strides, end).unwrap();
    (layout, skew)
}

/// Every row of every plane: where it is in one layout, where in another of that format and size, and how long it is.
fn rows<'a>(
    a: &'a VideoLayout,
    b: &'a VideoLayout,
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    a.format()
        .planes()
        .iter()
        .enumerate()
        .flat_map(move |(i, plane)| {
            let (row, rows) = a.plane_size(plane);
            (0..rows).map(move |y| {
                let at = |l: &VideoLayout| l.offsets()[i] + y * l.strides()[i];
                (at(a), at(b), row)
            })
        })
}

fn frames_to_tensors(runner: &dyn Runner) {
    let mut cases = Vec::new();
    for (i, golden) in GOLDEN.iter().enumerate() {
        let dense = VideoLayout::dense(golden.format, golden.from.0, golden.from.1).unwrap();
        let samples = hashed(dense.size() / bytes(golden.format), golden.seed);
        let frame: Vec<u8> = match bytes(golden.format) {
            1 => samples.map(|s| (s >> 8) as u8).collect(),
            _ => samples.flat_map(u16::to_le_bytes).collect(),
        };
        for memory in [Memory::Dense, Memory::Padded, Memory::Odd] {
            let (layout, skew) = layout(golden.format, golden.from, memory);
            let mut padded = vec![MARK; layout.size()];
            for (from, to, len) in rows(&dense, &layout) {
                padded[to..to + len].copy_from_slice(&frame[from..from + len]);
            }
            let mut case = Case::default();
            let frame = address(case.skewed(&padded, skew), 0);
            // The tensor may lie between other rows of an engine's input.
            let skew = 2 * (i % 2);
            let tensor = vec![MARK; 2 * golden.tensor.len() + 32];
            let tensor = address(case.skewed(&tensor, skew), 16);
            case.launches.push(Launch::FrameToTensor {
                plan: FrameToTensor::new(&layout.sited(golden.siting), golden.colour, golden.to)
                    .unwrap(),
                frame,
                tensor,
            });
            cases.push(case);
        }
    }
    let results = runner.run(&cases);
    for (golden, results) in GOLDEN.iter().zip(results.chunks(3)) {
        for result in results {
            let (before, rest) = result[1].split_at(16);
            let (tensor, after) = rest.split_at(rest.len() - 16);
            assert!(before.iter().chain(after).all(|b| *b == MARK));
            for (j, (found, right)) in halves(tensor).iter().zip(&golden.tensor).enumerate() {
                let error = (found.to_f64() - right).abs();
                // Half a step of f16 near 1, and the rounding of the reference.
                assert!(
                    error < 2.7e-4,
                    "{}, {j}: {found}, expected {right}",
                    golden.name
                );
            }
        }
    }
}

fn tensors_to_frames(runner: &dyn Runner) {
    let mut cases = Vec::new();
    let mut layouts = Vec::new();
    for golden in GOLDEN.iter() {
        let count = 3 * golden.from.0 * golden.from.1;
        let tensor: Vec<f16> = numbers(count, golden.seed)
            .iter()
            .map(|x| f16::from_f64(1.25 * x.to_f64()))
            .collect();
        for memory in [Memory::Dense, Memory::Padded, Memory::Odd] {
            let (layout, skew) = layout(golden.format, golden.to, memory);
            let mut case = Case::default();
            let skewed = matches!(memory, Memory::Odd);
            let tensor = case.skewed(&bytes_of(&tensor), 2 * usize::from(skewed));
            let frame = case.skewed(&vec![MARK; layout.size()], skew);
            let plan = TensorToFrame::new(golden.from, &layout.sited(golden.siting), golden.colour);
            // Small frames are made in the lowest strips.
            let rows = match memory {
                Memory::Dense => 4,
                Memory::Padded => 2,
                Memory::Odd => 64,
            };
            case.launches.push(Launch::TensorToFrame {
                plan: plan.unwrap().in_strips_of(rows),
                tensor: address(tensor, 0),
                frame: address(frame, 0),
            });
            cases.push(case);
            layouts.push(layout);
        }
    }
    let results = runner.run(&cases);
    for (i, (result, layout)) in results.iter().zip(&layouts).enumerate() {
        let golden = &GOLDEN[i / 3];
        let name = &golden.name;
        let dense = VideoLayout::dense(golden.format, golden.to.0, golden.to.1).unwrap();
        let mut untouched = result[1].clone();
        for (from, to, len) in rows(&dense, layout) {
            let size = bytes(golden.format);
            let found = &result[1][to..to + len];
            let right = &golden.codes[from / size..];
            for (j, (found, right)) in found.chunks(size).zip(right).enumerate() {
                let code = match found {
                    [byte] => u16::from(*byte),
                    [low, high] => {
                        let sample = u16::from_le_bytes([*low, *high]);
                        assert_eq!(sample & 63, 0, "{name}");
                        sample >> 6
                    }
                    _ => panic!("{name}"),
                };
                let right = right.unwrap_or_else(|| panic!("{name}: no sample at {j}"));
                let error = (f64::from(code) - right).abs();
                assert!(error < 0.52, "{name}, {j}: {code}, expected {right}");
            }
            untouched[to..to + len].fill(MARK);
        }
        let beside = untouched.iter().filter(|b| **b != MARK).count();
        assert_eq!(beside, 0, "{name}: wrote beside the frame");
    }
}

/// The host device's own conversions, where they do the same: 8-bit RGB of the same size.
fn like_the_host_device(runner: &dyn Runner) {
    let (width, height, stride) = (171, 7, 520);
    let mut random = Random::new(11);
    let rgb: Vec<u8> = (0..stride * height).map(|_| random.bits() as u8).collect();
    let planes: Vec<f16> = (0..3 * width * height)
        .map(|_| f16::from_f64(1.1 * random.unit()))
        .collect();
    let layout = VideoLayout::new(
        PixelFormat::Rgb,
        width,
        height,
        [0; 4],
        [stride; 4],
        rgb.len(),
    );
    let layout = layout.unwrap();
    let mut case = Case::default();
    let [frame, tensor, planar, out] = [
        case.buffer(&rgb),
        case.buffer(&vec![0; 6 * width * height]),
        case.buffer(&bytes_of(&planes)),
        case.buffer(&rgb),
    ];
    case.launches.push(Launch::FrameToTensor {
        plan: FrameToTensor::new(&layout, Colour::FULL_RGB, (width, height)).unwrap(),
        frame: address(frame, 0),
        tensor: address(tensor, 0),
    });
    case.launches.push(Launch::TensorToFrame {
        plan: TensorToFrame::new((width, height), &layout, Colour::FULL_RGB).unwrap(),
        tensor: address(planar, 0),
        frame: address(out, 0),
    });
    let result = runner.run(&[case]).remove(0);

    let host = pixels::to_tensor(&rgb, stride, width, height);
    for (found, right) in halves(&result[tensor]).iter().zip(host.data()) {
        numbers::is_rounded(*found, f64::from(*right), 1.0, &"pixel");
    }
    let planes = planes.iter().map(|p| p.to_f32()).collect();
    let picture = HostTensor::new(&[1, 3, height, width], planes);
    let mut right = rgb.clone();
    pixels::from_tensor(&picture, &mut right, stride);
    // Where a value lies between two codes, the last bit of f32 decides.
    for (i, (found, right)) in result[out].iter().zip(&right).enumerate() {
        if found != right {
            let (x, y) = (i % stride, i / stride);
            let value = f64::from(picture.data()[(x % 3 * height + y) * width + x / 3]);
            let exact = (value * 0.5 + 0.5) * 255.0;
            let tie = (exact - exact.floor() - 0.5).abs() < 1e-4;
            assert!(tie, "byte {i}: {found}, not {right} ({exact})");
        }
    }
}

fn what_is_no_number(runner: &dyn Runner) {
    let tensor = [f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::MAX].map(|v| vec![v; 3]);
    let mut cases = Vec::new();
    for value in &tensor {
        for format in [PixelFormat::Rgba, PixelFormat::P010, PixelFormat::Yuy2] {
            let layout = VideoLayout::dense(format, 1, 1).unwrap();
            let mut case = Case::default();
            let tensor = case.buffer(&bytes_of(value));
            let frame = case.buffer(&vec![MARK; layout.size()]);
            case.launches.push(Launch::TensorToFrame {
                plan: TensorToFrame::new((1, 1), &layout, Colour::default()).unwrap(),
                tensor: address(tensor, 0),
                frame: address(frame, 0),
            });
            cases.push(case);
        }
    }
    let results = runner.run(&cases);
    for (i, results) in results.chunks(3).enumerate() {
        let white = i % 2 == 1;
        let level = |black: u8, white_level: u8| if white { white_level } else { black };
        assert_eq!(
            results[0][1],
            [[level(16, 235); 3].as_slice(), &[255]].concat()
        );
        let ten = |code: u16| (code << 6).to_le_bytes();
        let luma = ten(if white { 940 } else { 64 });
        let right = [luma, [MARK; 2], ten(512), ten(512)].concat();
        // The second sample of the luma row is no pixel.
        assert_eq!(results[1][1][..2], right[..2]);
        assert_eq!(results[1][1][4..8], right[4..8]);
        let luma = level(16, 235);
        assert_eq!(results[2][1], [luma, 128, luma, 128]);
    }
}

/// Every code of gray and of red, green and blue survives, in both ranges that hold it.
fn there_and_back(runner: &dyn Runner) {
    let mut cases = Vec::new();
    let mut frames = Vec::new();
    for format in [PixelFormat::Gray8, PixelFormat::Bgrx, PixelFormat::Xbgr] {
        for full_range in [true, false] {
            let colour = Colour {
                matrix: Matrix::Bt709,
                full_range,
            };
            let layout = VideoLayout::dense(format, 256, 1).unwrap();
            let mut frame = vec![255; layout.size()];
            for component in format.components() {
                for code in 0..256 {
                    let code_inside = if full_range {
                        code
                    } else {
                        code.clamp(16, 235)
                    };
                    frame[component.offset + code * component.step] = code_inside as u8;
                }
            }
            let mut case = Case::default();
            let input = case.buffer(&frame);
            let tensor = case.buffer(&[0; 6 * 256]);
            let out = case.buffer(&vec![0; layout.size()]);
            case.launches.push(Launch::FrameToTensor {
                plan: FrameToTensor::new(&layout, colour, (256, 1)).unwrap(),
                frame: address(input, 0),
                tensor: address(tensor, 0),
            });
            case.launches.push(Launch::TensorToFrame {
                plan: TensorToFrame::new((256, 1), &layout, colour).unwrap(),
                tensor: address(tensor, 0),
                frame: address(out, 0),
            });
            cases.push(case);
            frames.push(frame);
        }
    }
    for (result, frame) in runner.run(&cases).iter().zip(frames) {
        assert_eq!(result[2], frame);
    }
}
