//! Kernels that work on tensors.

use gststreamdiffusion::device::cuda::kernels::{
    BlendRow, COSINE_PARTIAL_BYTES, CombineRow, CopyBytesRow, CopyRow, CosineRow, Element, Kernel,
    PosteriorRow, SlerpRow,
};
use gststreamdiffusion::device::{Coefficients, Device, Host, HostTensor, Update};
use half::f16;

use crate::case::{Case, Runner, address, everywhere};
use crate::numbers::{
    Random, bytes_of, bytes_of_f32, floats, halves, is_rounded, numbers, tensors,
};

everywhere! {
    halves_become_floats floats_become_halves copies bytes combinations steps_of_the_host_device fused_step
    posteriors posterior_of_diffusers cosines cosines_of_several_rows slerps blends
}

const MARK: u8 = 0xA5;

/// `values` with 16 bytes around them that must stay, and the address of the first.
pub(crate) fn guarded(case: &mut Case, values: &[u8], skew: usize) -> u64 {
    let mut bytes = vec![MARK; 16];
    bytes.extend(values);
    bytes.extend([MARK; 16]);
    address(case.skewed(&bytes, skew), 16)
}

/// What is between the guards, which are checked.
#[track_caller]
pub(crate) fn unguarded(bytes: &[u8]) -> &[u8] {
    let (before, rest) = bytes.split_at(16);
    let (values, after) = rest.split_at(rest.len() - 16);
    let whole = before.iter().chain(after).all(|b| *b == MARK);
    assert!(whole, "wrote beside the output: {before:?} {after:?}");
    values
}

fn halves_become_floats(runner: &dyn Runner) {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let mut case = Case::default();
    let input = address(case.buffer(&bytes_of(&all)), 0);
    let out = case.buffer(&vec![MARK; 4 * all.len()]);
    let rows = [CopyRow::plain(input, address(out, 0), all.len() as u32)];
    case.launch(Kernel::CopyF16F32, &rows, all.len());
    let result = runner.run(&[case]).remove(0);
    for (half, float) in all.iter().zip(floats(&result[out])) {
        if half.is_nan() {
            assert!(float.is_nan());
        } else {
            assert_eq!(half.to_f32().to_bits(), float.to_bits(), "{half}");
        }
    }
}

fn floats_become_halves(runner: &dyn Runner) {
    let mut random = Random::new(3);
    // Numbers, the ties between them, and what is next to these; what is too large, too small, or no number.
    let mut all: Vec<f32> = Vec::new();
    for bits in 0..0x7c00u16 {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1));
        let high = if high.is_infinite() {
            65536.0
        } else {
            high.to_f32()
        };
        let tie = 0.5 * (low + high);
        let near = [tie.next_down(), tie, tie.next_up(), low];
        all.extend(near.iter().flat_map(|x| [*x, -x]));
    }
    all.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        1e-40,
        -0.0,
    ]);
    all.extend((0..20_000).map(|_| f32::from_bits(random.bits() as u32)));
    let mut case = Case::default();
    let input = address(case.buffer(&bytes_of_f32(&all)), 0);
    let out = case.buffer(&vec![MARK; 2 * all.len()]);
    let rows = [CopyRow::plain(input, address(out, 0), all.len() as u32)];
    case.launch(Kernel::CopyF32F16, &rows, all.len());
    let result = runner.run(&[case]).remove(0);
    for (float, half) in all.iter().zip(halves(&result[out])) {
        if float.is_nan() {
            assert!(half.is_nan());
        } else {
            assert_eq!(f16::from_f32(*float).to_bits(), half.to_bits(), "{float:e}");
        }
    }
}

fn copies(runner: &dyn Runner) {
    let mut random = Random::new(4);
    let mut cases = Vec::new();
    let mut rights = Vec::new();
    for (from, to) in [
        (Element::F16, Element::F16),
        (Element::F16, Element::F32),
        (Element::F32, Element::F16),
        (Element::F32, Element::F32),
    ] {
        for _ in 0..12 {
            // Two rows of different lengths, skewed differently.
            let mut case = Case::default();
            let (mut rows, mut right) = (Vec::new(), Vec::new());
            for _ in 0..2 {
                let len = random.len();
                let scaled = random.below(2) == 0;
                let (scale, shift) = if scaled { (0.18215, -1.5) } else { (1.0, 0.0) };
                let values = random.floats(len);
                let (input, bytes) = match from {
                    Element::F16 => {
                        let values: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
                        let wide = values.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
                        (wide, bytes_of(&values))
                    }
                    Element::F32 => {
                        let wide = values.iter().map(|x| f64::from(*x)).collect();
                        (wide, bytes_of_f32(&values))
                    }
                };
                let size = |e| if e == Element::F16 { 2 } else { 4 };
                let mut skew = |e| size(e) * random.below(3);
                let at = address(case.skewed(&bytes, skew(from)), 0);
                let skew = skew(to);
                let out = guarded(&mut case, &vec![0; size(to) * len], skew);
                right.push((case.buffers.len() - 1, input, scale, shift));
                rows.push(CopyRow {
                    scale: scale as f32,
                    shift: shift as f32,
                    ..CopyRow::plain(at, out, len as u32)
                });
            }
            let longest = rows.iter().map(|r| r.len).max().unwrap();
            case.launch(Kernel::copy(from, to), &rows, longest as usize);
            cases.push(case);
            rights.push((to, right));
        }
    }
    for (result, (to, right)) in runner.run(&cases).iter().zip(rights) {
        for (out, input, scale, shift) in right {
            let found = unguarded(&result[out]);
            let scale = f64::from(scale as f32);
            let right = input.iter().map(|x| x * scale + shift);
            match to {
                Element::F16 => {
                    for (found, right) in halves(found).iter().zip(right) {
                        is_rounded(*found, right, 6.0, &"copy");
                    }
                }
                Element::F32 => {
                    for (found, right) in floats(found).iter().zip(right) {
                        let exact = scale == 1.0;
                        let allowed = if exact { 0.0 } else { 1e-6 };
                        assert!((f64::from(*found) - right).abs() <= allowed);
                    }
                }
            }
        }
    }
}

fn bytes(runner: &dyn Runner) {
    let mut random = Random::new(5);
    let mut cases = Vec::new();
    let mut rights = Vec::new();
    for _ in 0..40 {
        let mut case = Case::default();
        let (mut rows, mut right) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let len = random.len();
            let values: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
            let skews = [random.below(3), random.below(3)].map(|s| s * random.below(17));
            let input = address(case.skewed(&values, skews[0]), 0);
            let out = guarded(&mut case, &vec![0; len], skews[1]);
            right.push((case.buffers.len() - 1, values));
            rows.push(CopyBytesRow {
                input,
                out,
                bytes: len as u32,
                unused: 0,
            });
        }
        let longest = rows.iter().map(|r| r.bytes).max().unwrap();
        case.launch(Kernel::CopyBytes, &rows, longest as usize);
        cases.push(case);
        rights.push(right);
    }
    for (result, right) in runner.run(&cases).iter().zip(rights) {
        for (out, values) in right {
            assert_eq!(unguarded(&result[out]), values);
        }
    }
}

/// Random lengths, periods, factors, operands that are missing or the output, and skews.
fn combinations(runner: &dyn Runner) {
    let mut random = Random::new(6);
    let mut cases = Vec::new();
    let mut rights = Vec::new();
    for _ in 0..60 {
        let mut case = Case::default();
        let (mut rows, mut right) = (Vec::new(), Vec::new());
        for _ in 0..1 + random.below(4) {
            let len = random.len();
            let skewed = random.below(3) == 0;
            let repeats = random.below(2) == 0;
            let period = if repeats {
                1 + random.below(len)
            } else {
                random.below(2) * len
            };
            let period = if repeats && random.below(2) == 0 {
                period.next_multiple_of(8)
            } else {
                period
            };
            let lens = [len, len, len, if period == 0 { len } else { period }];
            let mut operands = [0; 4];
            let mut values: [Vec<f16>; 4] = Default::default();
            let mut factors = [0.0f32; 4];
            for i in 0..4 {
                factors[i] = random.unit() as f32 * 2.0;
                values[i] = random.halves(lens[i]);
                match random.below(6) {
                    // Not there.
                    0 => values[i].clear(),
                    // Not read: its values would show.
                    1 => {
                        factors[i] = 0.0;
                        values[i].fill(f16::NAN);
                    }
                    _ => {}
                }
                if !values[i].is_empty() {
                    let skew = if skewed { 2 * random.below(8) } else { 0 };
                    operands[i] = guarded(&mut case, &bytes_of(&values[i]), skew);
                }
            }
            // The output may be an operand that does not repeat.
            let alias = random.below(8);
            let out = match operands.get(alias) {
                Some(operand) if *operand != 0 && (alias < 3 || period == 0 || period >= len) => {
                    *operand
                }
                _ => guarded(&mut case, &vec![0; 2 * len], 0),
            };
            let [a, b, c, d] = operands;
            let [ka, kb, kc, kd] = factors;
            rows.push(CombineRow {
                a,
                b,
                c,
                d,
                out,
                ka,
                kb,
                kc,
                kd,
                len: len as u32,
                period: period as u32,
            });
            let sums: Vec<(f64, f64)> = (0..len)
                .map(|i| {
                    let terms = (0..4).map(|o| {
                        let at = if period > 0 && o == 3 { i % period } else { i };
                        let unread = values[o].is_empty() || factors[o] == 0.0;
                        let value = if unread { 0.0 } else { values[o][at].to_f64() };
                        f64::from(factors[o]) * value
                    });
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
                })
                .collect();
            right.push((crate::case::parts(out).0, sums));
        }
        let longest = rows.iter().map(|r| r.len).max().unwrap();
        case.launch(Kernel::Combine, &rows, longest as usize);
        cases.push(case);
        rights.push(right);
    }
    for (i, (result, right)) in runner.run(&cases).iter().zip(rights).enumerate() {
        for (out, sums) in right {
            let found = halves(unguarded(&result[out]));
            for (j, (found, (right, size))) in found.iter().zip(sums).enumerate() {
                is_rounded(*found, right, size, &format_args!("case {i}, element {j}"));
            }
        }
    }
}

fn host_tensor(values: &[f16]) -> HostTensor {
    let values: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
    HostTensor::new(&[1, 1, 1, values.len()], values)
}

/// The fused step and the noising of the host device, on the same f16 numbers.
fn steps_of_the_host_device(runner: &dyn Runner) {
    let mut random = Random::new(7);
    let len = 4 * 8 * 9;
    let operands: Vec<Vec<f16>> = (0..4).map(|_| random.halves(len)).collect();
    let k = Coefficients {
        sample: 0.9,
        prediction: -0.7,
        reference: 0.3,
        noise: 0.25,
    };
    let mut case = Case::default();
    let at: Vec<u64> = operands
        .iter()
        .map(|o| address(case.buffer(&bytes_of(o)), 0))
        .collect();
    let out = guarded(&mut case, &vec![0; 2 * len], 0);
    let row = CombineRow {
        a: at[0],
        b: at[1],
        c: at[2],
        d: at[3],
        out: at[0],
        ka: k.sample,
        kb: k.prediction,
        kc: k.reference,
        kd: k.noise,
        len: len as u32,
        period: 0,
    };
    let noised = CombineRow {
        a: at[1],
        d: at[2],
        out,
        ka: 0.6,
        kd: 0.8,
        len: len as u32,
        ..Default::default()
    };
    case.launch(Kernel::Combine, &[row, noised], len);
    let result = runner.run(&[case]).remove(0);

    let tensors: Vec<HostTensor> = operands.iter().map(|o| host_tensor(o)).collect();
    let mut x = tensors[0].clone();
    let update = Update {
        k,
        x: &mut x,
        prediction: &tensors[1],
        reference: Some(&tensors[2]),
        noise: Some(&tensors[3]),
    };
    Host.step(vec![update]).unwrap();
    let noisy = Host.add_noise(0.6, &tensors[1], 0.8, &tensors[2]).unwrap();
    for (found, right) in [(&result[0][..], x), (unguarded(&result[4]), noisy)] {
        for (found, right) in halves(found).iter().zip(right.data()) {
            is_rounded(*found, f64::from(*right), 8.0, &"step");
        }
    }
}

/// Two frames of a slot that share a noise map, against numpy.
fn fused_step(runner: &dyn Runner) {
    let golden = tensors();
    let mut case = Case::default();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| {
        address(
            case.buffer(&bytes_of(&golden.f16(&format!("combine_{name}")))),
            0,
        )
    });
    let k = golden.f32("combine_factors");
    let row = CombineRow {
        a,
        b,
        c,
        d,
        out: a,
        ka: k[0],
        kb: k[1],
        kc: k[2],
        kd: k[3],
        len: 70,
        period: 35,
    };
    case.launch(Kernel::Combine, &[row], 70);
    let result = runner.run(&[case]).remove(0);
    let right = golden.f64("combine_out");
    assert_eq!(right.len(), 70);
    for (found, right) in halves(&result[0]).iter().zip(right) {
        is_rounded(*found, right, 20.0, &"fused step");
    }
}

fn posteriors(runner: &dyn Runner) {
    let mut random = Random::new(8);
    let mut cases = Vec::new();
    let mut rights = Vec::new();
    for element in [Element::F16, Element::F32] {
        for i in 0..24 {
            let len = random.len();
            let with_noise = i % 3 > 0;
            let means = random.halves(len);
            let mut logs = random.halves(len);
            logs[len / 2] = f16::from_f32(-100.0);
            if i == 1 {
                logs[0] = f16::NAN;
            }
            let moments: Vec<f16> = means.iter().chain(&logs).copied().collect();
            let noise = random.halves(len);
            let mut case = Case::default();
            let (bytes, size) = match element {
                Element::F16 => (bytes_of(&moments), 2),
                Element::F32 => {
                    let wide: Vec<f32> = moments.iter().map(|m| m.to_f32()).collect();
                    (bytes_of_f32(&wide), 4)
                }
            };
            let moments = address(case.skewed(&bytes, size * random.below(2)), 0);
            let noises = address(case.skewed(&bytes_of(&noise), 2 * random.below(2)), 0);
            let out = guarded(&mut case, &vec![0; 2 * len], 0);
            let row = PosteriorRow {
                moments,
                noise: if with_noise { noises } else { 0 },
                out,
                scale: 0.5,
                shift: 0.25,
                len: len as u32,
                unused: 0,
            };
            case.launch(Kernel::posterior(element), &[row], len);
            cases.push(case);
            let right: Vec<f64> = (0..len)
                .map(|i| {
                    let deviation = (0.5 * logs[i].to_f64().clamp(-30.0, 20.0)).exp();
                    let noise = if with_noise { noise[i].to_f64() } else { 0.0 };
                    let value = if with_noise { deviation * noise } else { 0.0 };
                    (means[i].to_f64() + value - 0.25) * 0.5
                })
                .collect();
            rights.push(right);
        }
    }
    for (result, right) in runner.run(&cases).iter().zip(rights) {
        for (found, right) in halves(unguarded(&result[2])).iter().zip(right) {
            if right.is_nan() {
                assert!(found.is_nan());
            } else {
                is_rounded(*found, right, right.abs() + 4.0, &"posterior");
            }
        }
    }
}

fn posterior_of_diffusers(runner: &dyn Runner) {
    let golden = tensors();
    let moments = golden.f16("posterior_moments");
    let len = moments.len() / 2;
    let [scale, shift] = golden.f32("posterior_numbers")[..] else {
        panic!("two numbers")
    };
    let mut cases = Vec::new();
    for element in [Element::F16, Element::F32] {
        let mut case = Case::default();
        let wide: Vec<f32> = moments.iter().map(|m| m.to_f32()).collect();
        let bytes = match element {
            Element::F16 => bytes_of(&moments),
            Element::F32 => bytes_of_f32(&wide),
        };
        let row = PosteriorRow {
            moments: address(case.buffer(&bytes), 0),
            noise: address(case.buffer(&bytes_of(&golden.f16("posterior_noise"))), 0),
            out: guarded(&mut case, &vec![0; 2 * len], 0),
            scale,
            shift,
            len: len as u32,
            unused: 0,
        };
        case.launch(Kernel::posterior(element), &[row], len);
        cases.push(case);
    }
    for result in runner.run(&cases) {
        let found = halves(unguarded(&result[2]));
        for (found, right) in found.iter().zip(golden.f64("posterior_out")) {
            is_rounded(*found, right, right.abs() + 1.0, &"posterior");
        }
    }
}

fn cosine_row(case: &mut Case, a: u64, b: u64, len: usize) -> CosineRow {
    CosineRow {
        a,
        b,
        out: guarded(case, &[0; 12], 0),
        partial: address(case.buffer(&vec![0xff; COSINE_PARTIAL_BYTES]), 0),
        finished: address(case.buffer(&[0; 16]), 0),
        len: len as u32,
        unused: 0,
    }
}

/// Up to a Full HD picture, against numpy and the host device; twice in a row, as in a graph that is replayed.
fn cosines(runner: &dyn Runner) {
    let golden = tensors();
    let mut cases = Vec::new();
    let mut operands = Vec::new();
    // Of each case, which operands it has, and whether it is launched twice.
    let mut of = Vec::new();
    for len in golden.u32("cosine_lengths") {
        let len = len as usize;
        let a = numbers(len, 5);
        let mixed = a.iter().zip(numbers(len, 777));
        let b: Vec<f16> = mixed
            .map(|(a, b)| f16::from_f64(0.75 * a.to_f64() + 0.25 * b.to_f64()))
            .collect();
        for skew in [0, 2] {
            // The longest takes long on a CPU.
            if skew > 0 && len > 1 << 20 {
                continue;
            }
            let mut case = Case::default();
            let a = address(case.buffer(&bytes_of(&a)), 0);
            let b = address(case.skewed(&bytes_of(&b), skew), 0);
            let row = cosine_row(&mut case, a, b, len);
            case.launch(Kernel::Cosine, &[row], len);
            let again = CosineRow {
                out: guarded(&mut case, &[0; 12], 0),
                ..row
            };
            if len < 1 << 20 {
                case.launch(Kernel::Cosine, &[again], len);
            }
            of.push((operands.len(), len < 1 << 20));
            cases.push(case);
        }
        operands.push((a, b));
    }
    let results = runner.run(&cases);
    let rights = golden.f64("cosine_sums");
    for (result, (i, twice)) in results.iter().zip(of) {
        let found = floats(unguarded(&result[2]));
        for (found, right) in found.iter().zip(&rights[3 * i..]) {
            let error = (f64::from(*found) / right - 1.0).abs();
            assert!(error < 3e-7, "{found}, expected {right}");
        }
        assert_eq!(result[4], [0; 16]);
        if twice {
            assert_eq!(unguarded(&result[6]), unguarded(&result[2]));
        }
        let cosine = found[0] / (found[1] * found[2]).sqrt();
        let (a, b) = &operands[i];
        let host = Host.compare(&host_tensor(a), &host_tensor(b)).unwrap();
        assert!((cosine - host).abs() < 5e-7, "{cosine}, not {host}");
    }
}

fn cosines_of_several_rows(runner: &dyn Runner) {
    let mut random = Random::new(9);
    let mut case = Case::default();
    let (mut rows, mut rights) = (Vec::new(), Vec::new());
    for len in [3000, 1, 70_000, 16, 0] {
        let (a, b) = (random.halves(len), random.halves(len));
        let at = [&a, &b].map(|v| address(case.buffer(&bytes_of(v)), 0));
        rows.push(cosine_row(&mut case, at[0], at[1], len));
        rights.push([(&a, &b), (&a, &a), (&b, &b)].map(|(x, y)| {
            let products = x.iter().zip(y).map(|(x, y)| x.to_f64() * y.to_f64());
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        }));
    }
    case.launch(Kernel::Cosine, &rows, 70_000);
    let result = runner.run(&[case]).remove(0);
    for (i, right) in rights.iter().enumerate() {
        let found = floats(unguarded(&result[5 * i + 2]));
        for (found, (right, size)) in found.iter().zip(right) {
            let error = (f64::from(*found) - right).abs();
            assert!(error <= 3e-7 * size, "{found}, expected {right}");
        }
    }
}

fn slerps(runner: &dyn Runner) {
    let golden = tensors();
    let (a, b) = (golden.f16("slerp_a"), golden.f16("slerp_b"));
    let len = a.len();
    // Also vectors without an arc: parallel, opposite, zero.
    let doubled: Vec<f16> = a.iter().map(|x| f16::from_f32(2.0 * x.to_f32())).collect();
    let zero = vec![f16::ZERO; len];
    let mut cases = Vec::new();
    let mut rights = Vec::new();
    let ts = golden.f32("slerp_t");
    let out = golden.f64("slerp_out");
    for (i, t) in ts.iter().enumerate() {
        for (with, linear) in [(&b, false), (&doubled, true), (&zero, true), (&a, true)] {
            let mut case = Case::default();
            let x = guarded(&mut case, &bytes_of(&a), 0);
            let y = address(case.skewed(&bytes_of(with), 2 * (i % 2)), 0);
            let sums = cosine_row(&mut case, x, y, len);
            case.launch(Kernel::Cosine, &[sums], len);
            let row = SlerpRow {
                a: x,
                b: y,
                out: x,
                sums: sums.out,
                t: *t,
                len: len as u32,
            };
            case.launch(Kernel::Slerp, &[row], len);
            cases.push(case);
            let t = f64::from(*t);
            rights.push(if linear {
                let mixed = a.iter().zip(with);
                mixed
                    .map(|(x, y)| (1.0 - t) * x.to_f64() + t * y.to_f64())
                    .collect()
            } else {
                out[i * len..(i + 1) * len].to_vec()
            });
        }
    }
    for (result, right) in runner.run(&cases).iter().zip(rights) {
        for (found, right) in halves(unguarded(&result[0])).iter().zip(right) {
            is_rounded(*found, right, 12.0, &"slerp");
        }
    }
}

/// Against numpy and the host device: each picture by its share, in vectors and one by one, in place, and with what is
/// no number.
fn blends(runner: &dyn Runner) {
    let golden = tensors();
    let (over, under) = (golden.f16("blend_over"), golden.f16("blend_under"));
    let shares = golden.f32("blend_shares");
    let out = golden.f64("blend_out");
    let len = over.len() / shares.len();
    assert!(over.iter().any(|x| x.to_f64().abs() > 1.0));
    let mut cases = Vec::new();
    for skew in [0, 2] {
        for in_place in [false, true] {
            let mut case = Case::default();
            let mut rows = Vec::new();
            for (i, share) in shares.iter().enumerate() {
                let part = i * len..(i + 1) * len;
                let a = guarded(&mut case, &bytes_of(&over[part.clone()]), 0);
                let b = address(case.skewed(&bytes_of(&under[part]), skew), 0);
                let apart = guarded(&mut case, &vec![0; 2 * len], 0);
                rows.push(BlendRow {
                    a,
                    b,
                    out: if in_place { a } else { apart },
                    share: *share,
                    len: len as u32,
                });
            }
            case.launch(Kernel::Blend, &rows, len);
            cases.push((case, in_place));
        }
    }
    let (cases, in_place): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let host = Host
        .blend(
            &shares,
            &HostTensor::new(&[2, len], over.iter().map(|x| x.to_f32()).collect()),
            &HostTensor::new(&[2, len], under.iter().map(|x| x.to_f32()).collect()),
        )
        .unwrap();
    for (found, right) in host.data().iter().zip(&out) {
        assert!((f64::from(*found) - right).abs() < 1e-6);
    }
    for (result, in_place) in runner.run(&cases).iter().zip(in_place) {
        for (row, right) in out.chunks(len).enumerate() {
            let found = &result[3 * row + if in_place { 0 } else { 2 }];
            for (found, right) in halves(unguarded(found)).iter().zip(right) {
                is_rounded(*found, *right, 2.0, &"blend");
            }
        }
    }

    let over = [f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::ONE];
    let under = [0.5, 0.5, 0.5, -1.0].map(f16::from_f32);
    let mut cases = Vec::new();
    for share in [0.0, 0.5, 1.0] {
        let mut case = Case::default();
        let a = address(case.buffer(&bytes_of(&over)), 0);
        let b = address(case.buffer(&bytes_of(&under)), 0);
        let out = guarded(&mut case, &[0; 8], 0);
        let row = BlendRow {
            a,
            b,
            out,
            share,
            len: 4,
        };
        case.launch(Kernel::Blend, &[row], 4);
        cases.push(case);
    }
    let rights = [
        [0.5, 0.5, 0.5, -1.0],
        [-0.25, 0.75, -0.25, 0.0],
        [-1.0, 1.0, -1.0, 1.0],
    ];
    for (result, right) in runner.run(&cases).iter().zip(rights) {
        let found = halves(unguarded(&result[2]));
        assert_eq!(found, right.map(f16::from_f32));
    }
}
