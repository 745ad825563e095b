//! What lies between two texts.

use gststreamdiffusion::device::cuda::kernels::{Element, InterpolateRow, Kernel};
use gststreamdiffusion::device::{HostTensor, Interpolation};
use half::f16;

use crate::case::{Case, Runner, address, everywhere};
use crate::numbers::{Random, bytes_of_f32, floats, halves, is_rounded, tensors};
use crate::tensors::{guarded, unguarded};

everywhere! {
    interpolations_of_numpy interpolations_of_the_host_device interpolations_begin_and_end_with_the_texts
}

const BOTH: [Interpolation; 2] = [Interpolation::Linear, Interpolation::Spherical];

/// Texts of vectors of `width` numbers, and how far to go from one to the other.
struct Way<'a> {
    a: &'a [f32],
    b: &'a [f32],
    width: usize,
    share: f32,
    how: Interpolation,
}

impl<'a> Way<'a> {
    /// Between the texts of `tools/reference/kernels.py`, in tokens of 21 numbers.
    fn of_numpy([a, b]: [&'a [f32]; 2], share: f32, how: Interpolation) -> Self {
        Self {
            a,
            b,
            width: 21,
            share,
            how,
        }
    }

    /// A launch of it alone, with a block for each vector but one, and the buffer that it writes to.
    fn alone(&self, element: Element) -> (Case, usize) {
        let mut case = Case::default();
        let (row, written) = self.row(&mut case, element, [0; 3]);
        let vectors = self.a.len() / self.width;
        case.launch(Kernel::interpolate(element), &[row], vectors - 1);
        (case, written)
    }

    /// A row that goes it, and the buffer that it writes to; `skews` are those of a, b and the output, in elements.
    fn row(&self, case: &mut Case, element: Element, skews: [usize; 3]) -> (InterpolateRow, usize) {
        let size = if element == Element::F16 { 2 } else { 4 };
        let a = address(case.skewed(&bytes_of_f32(self.a), 4 * skews[0]), 0);
        let b = address(case.skewed(&bytes_of_f32(self.b), 4 * skews[1]), 0);
        let out = guarded(case, &vec![0xee; size * self.a.len()], size * skews[2]);
        let row = InterpolateRow {
            a,
            b,
            out,
            t: self.share,
            width: self.width as u32,
            len: self.a.len() as u32,
            spherical: (self.how == Interpolation::Spherical).into(),
        };
        (row, case.buffers.len() - 1)
    }

    /// How far from the right ones numbers of its vector `i` may be in f32, where they are added up in sizes of `size`.
    fn allowed(&self, i: usize) -> f64 {
        let at = i * self.width..(i + 1) * self.width;
        let (a, b) = (&self.a[at.clone()], &self.b[at]);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
            products.sum()
        };
        let (aa, bb) = (dot(a, a), dot(b, b));
        let largest = a.iter().chain(b).fold(0f32, |most, x| most.max(x.abs()));
        let cosine = dot(a, b) / (aa * bb).sqrt();
        let sine = match self.how {
            // Opposite ones that have no arc are as exact as others.
            Interpolation::Spherical if (-1.0 + 1e-11..0.0).contains(&cosine) => {
                (1.0 - cosine * cosine).sqrt()
            }
            _ => 1.0,
        };
        1e-6 * f64::from(largest) / sine
    }

    /// Fails unless `found` holds `right`.
    #[track_caller]
    fn check(&self, element: Element, found: &[u8], right: &[f64], what: &dyn std::fmt::Display) {
        assert_eq!(right.len(), self.a.len());
        let found = unguarded(found);
        let what = format!(
            "{what}: {:?}, share {}, width {}",
            self.how, self.share, self.width
        );
        let (half, float) = match element {
            Element::F16 => (halves(found), Vec::new()),
            Element::F32 => (Vec::new(), floats(found)),
        };
        for (i, right) in right.chunks(self.width).enumerate() {
            let allowed = self.allowed(i);
            for (j, right) in (i * self.width..).zip(right) {
                match element {
                    Element::F16 => is_rounded(half[j], *right, 1e6 * allowed, &what),
                    Element::F32 => {
                        let error = (f64::from(float[j]) - right).abs();
                        let found = float[j];
                        assert!(error <= allowed, "{what}, {j}: {found}, expected {right}");
                    }
                }
            }
        }
    }
}

/// Tokens of every kind, also those without an arc, one below the other.
fn interpolations_of_numpy(runner: &dyn Runner) {
    let golden = tensors();
    let (a, b) = (golden.f32("interpolate_a"), golden.f32("interpolate_b"));
    let (shares, out) = (golden.f32("interpolate_t"), golden.f64("interpolate_out"));
    let straight = |share: f32| {
        let share = f64::from(share);
        let pairs = a.iter().zip(&b);
        let mixed = pairs.map(|(x, y)| (1.0 - share) * f64::from(*x) + share * f64::from(*y));
        mixed.collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    let mut expected = Vec::new();
    for (i, &share) in shares.iter().enumerate() {
        let arcs = out[i * a.len()..(i + 1) * a.len()].to_vec();
        for (how, right) in BOTH.into_iter().zip([straight(share), arcs]) {
            for element in [Element::F16, Element::F32] {
                let way = Way::of_numpy([&a, &b], share, how);
                let (case, written) = way.alone(element);
                cases.push(case);
                expected.push((way, element, written, right.clone()));
            }
        }
    }
    for (result, (way, element, written, right)) in runner.run(&cases).iter().zip(expected) {
        way.check(element, &result[written], &right, &"numpy");
    }
}

/// Texts of all widths and places in memory, several in a launch, with more vectors than blocks and with fewer.
fn interpolations_of_the_host_device(runner: &dyn Runner) {
    let mut random = Random::new(10);
    for element in [Element::F16, Element::F32] {
        let widths = [1, 2, 7, 8, 31, 64, 77, 200, 1024, 2056];
        let texts: Vec<_> = (0..40)
            .map(|i| {
                let width = widths[i % widths.len()];
                let len = width * (1 + random.below(5));
                let (a, mut b) = (random.floats(len), random.floats(len));
                // Some are parallel to those of the other end, or opposite, but for the rounding.
                for (i, x) in b.iter_mut().enumerate() {
                    match i / width {
                        1 => *x = -0.37 * a[i],
                        3 => *x = 1.7 * a[i],
                        _ => {}
                    }
                }
                (width, a, b, random.unit())
            })
            .collect();
        let ways: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(i, (width, a, b, share))| Way {
                a,
                b,
                width: *width,
                share: 0.5 + 0.5 * *share as f32,
                how: BOTH[(i + i / 10) % 2],
            })
            .collect();
        let mut cases = Vec::new();
        for ways in ways.chunks(3) {
            let mut case = Case::default();
            let rows = ways.iter().map(|way| {
                let skews = match random.below(2) {
                    0 => [0; 3],
                    _ => [random.below(3), random.below(3), random.below(5)],
                };
                way.row(&mut case, element, skews)
            });
            let (rows, written): (Vec<_>, Vec<_>) = rows.unzip();
            // Blocks stride over the rest.
            let vectors = 1 + random.below(6);
            case.launch(Kernel::interpolate(element), &rows, vectors);
            cases.push((case, written));
        }
        let (cases, written): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
        let results = runner.run(&cases);
        for ((ways, written), result) in ways.chunks(3).zip(written).zip(results) {
            for (way, written) in ways.iter().zip(written) {
                let shape = [way.a.len() / way.width, way.width];
                let [a, b] = [way.a, way.b].map(|x| HostTensor::new(&shape, x.to_vec()));
                let right = way.how.between(&a, &b, f64::from(way.share));
                let right: Vec<f64> = right.data().iter().map(|x| f64::from(*x)).collect();
                way.check(element, &result[written], &right, &"host");
            }
        }
    }
}

/// Bit for bit, also where tokens are nearly opposite.
fn interpolations_begin_and_end_with_the_texts(runner: &dyn Runner) {
    let golden = tensors();
    let (a, b) = (golden.f32("interpolate_a"), golden.f32("interpolate_b"));
    let mut cases = Vec::new();
    let mut expected = Vec::new();
    for (share, end) in [(0.0, &a), (1.0, &b)] {
        for how in BOTH {
            for element in [Element::F16, Element::F32] {
                let way = Way::of_numpy([&a, &b], share, how);
                let (case, written) = way.alone(element);
                cases.push(case);
                expected.push((element, written, end));
            }
        }
    }
    for (result, (element, written, end)) in runner.run(&cases).iter().zip(expected) {
        let found = unguarded(&result[written]);
        match element {
            Element::F16 => {
                let end: Vec<f16> = end.iter().map(|x| f16::from_f32(*x)).collect();
                assert_eq!(halves(found), end);
            }
            Element::F32 => assert_eq!(&floats(found), end),
        }
    }
}
