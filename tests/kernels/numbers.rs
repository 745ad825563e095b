//! Numbers to feed to kernels, and how far from the right ones theirs may be.

use std::io::Cursor;

use half::f16;

/// Random numbers that are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// In [-4, 4).
    pub fn halves(&mut self, len: usize) -> Vec<f16> {
        (0..len).map(|_| f16::from_f64(4.0 * self.unit())).collect()
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| 4.0 * self.unit() as f32).collect()
    }

    /// A length that exercises vectors and what is left over.
    pub fn len(&mut self) -> usize {
        match self.below(3) {
            0 => 1 + self.below(40),
            1 => 8 * (1 + self.below(300)),
            _ => 1 + self.below(9000),
        }
    }
}

/// The `hashed` of the reference script.
pub fn hashed(count: usize, seed: u64) -> impl Iterator<Item = u16> {
    (0..count as u64).map(move |i| {
        let product = i.wrapping_add(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (product >> 40) as u16
    })
}

/// The `numbers` of the reference script.
pub fn numbers(count: usize, seed: u64) -> Vec<f16> {
    hashed(count, seed)
        .map(|h| f16::from_f64(f64::from(h) / 32768.0 - 1.0))
        .collect()
}

pub fn bytes_of(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub fn bytes_of_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes
        .chunks_exact(2)
        .map(|b| f16::from_ne_bytes([b[0], b[1]]))
        .collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Fails unless `found` is one of the f16 numbers around `right`, computed in f32 from terms that are `size` in sum.
#[track_caller]
pub fn is_rounded(found: f16, right: f64, size: f64, what: &dyn std::fmt::Display) {
    let exponent = right.abs().max(2f64.powi(-14)).log2().floor();
    let last_place = 2f64.powf(exponent - 10.0);
    let allowed = 0.5001 * last_place + 1e-6 * size;
    let error = (found.to_f64() - right).abs();
    assert!(error <= allowed, "{what}: {found}, expected {right}");
}

/// An array of a file of numpy's.
pub struct Arrays(Vec<u8>);

impl Arrays {
    pub fn new(file: &[u8]) -> Self {
        Self(file.to_vec())
    }

    fn array<T: npyz::Deserialize>(&self, name: &str) -> Vec<T> {
        let mut archive = npyz::npz::NpzArchive::new(Cursor::new(&self.0)).unwrap();
        let array = archive.by_name(name).unwrap();
        array
            .unwrap_or_else(|| panic!("no {name}"))
            .into_vec()
            .unwrap()
    }

    pub fn u16(&self, name: &str) -> Vec<u16> {
        self.array(name)
    }

    pub fn i16(&self, name: &str) -> Vec<i16> {
        self.array(name)
    }

    pub fn u32(&self, name: &str) -> Vec<u32> {
        self.array(name)
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.array(name)
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.array(name)
    }

    pub fn f16(&self, name: &str) -> Vec<f16> {
        self.u16(name).into_iter().map(f16::from_bits).collect()
    }
}

/// What the reference script wrote for kernels on tensors.
pub fn tensors() -> Arrays {
    Arrays::new(include_bytes!("../data/kernels/tensors.npz"))
}

/// What the reference script wrote for frames.
pub fn frames() -> Arrays {
    Arrays::new(include_bytes!("../data/kernels/frames.npz"))
}
