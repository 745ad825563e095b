//! Noise that a seed stands for: the numbers PyTorch's CPU generator draws, so that a seed means the same picture here
//! as in diffusers.

use rand_mt::Mt;

/// Normal numbers in PyTorch's order.
///
/// The rule, as observed from PyTorch's documentation of its CPU generator and its results: a 32-bit Mersenne twister
/// seeded with the low 32 bits; a tensor of 16 values or more is first filled with uniforms of 24 bits, then each
/// block of 16 becomes normal by Box–Muller, value j pairing with value j+8; a length that is no multiple of 16 has its
/// last 16 values drawn anew. Shorter tensors take 53-bit uniforms, two per pair of normals.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    twister: Mt,
    /// The second normal of the last pair drawn for a short tensor.
    spare: Option<f64>,
}

/// Values per Box–Muller block.
const BLOCK: usize = 16;

impl TorchGenerator {
    /// As `torch.Generator().manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        Self {
            twister: Mt::new(seed as u32),
            spare: None,
        }
    }

    /// As `torch.randn(len, generator=self)` in float32.
    pub fn randn(&mut self, len: usize) -> Vec<f32> {
        if len < BLOCK {
            return (0..len).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..len).map(|_| self.uniform24()).collect();
        for block in values.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !len.is_multiple_of(BLOCK) {
            let tail = &mut values[len - BLOCK..];
            tail.fill_with(|| self.uniform24());
            box_muller(tail);
        }
        values
    }

    fn uniform24(&mut self) -> f32 {
        (self.twister.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    fn uniform53(&mut self) -> f64 {
        let (high, low) = (self.twister.next_u32(), self.twister.next_u32());
        let bits = (u64::from(high) << 32 | u64::from(low)) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u, v) = (self.uniform53(), self.uniform53());
        let radius = (-2.0 * (1.0 - v).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (x, y) in first.iter_mut().zip(second) {
        // In (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - *x).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * *y).sin_cos();
        (*x, *y) = (radius * cos, radius * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by tools/reference/torch_randn.py: the first three values of a first draw, the last two of a second.
    #[test]
    fn draws_what_pytorch_draws() {
        let golden: [(u64, usize, [f32; 3], [f32; 2]); 12] = [
            (
                0,
                3,
                [1.540996, -0.293429, -2.178789],
                [-1.084522, -1.398595],
            ),
            (
                0,
                16,
                [-1.12584, -1.15236, -0.250579],
                [0.946298, -0.843677],
            ),
            (
                0,
                21,
                [-1.12584, -1.15236, -0.250579],
                [-1.629326, -0.549744],
            ),
            (0, 64, [-1.12584, -1.15236, -0.250579], [0.923374, 1.387295]),
            (42, 3, [0.33669, 0.128809, 0.234462], [-1.122856, -0.186328]),
            (
                42,
                16,
                [1.926915, 1.487284, 0.900717],
                [-0.251575, 0.859859],
            ),
            (42, 21, [1.926915, 1.487284, 0.900717], [-0.17219, 0.523788]),
            (42, 64, [1.926915, 1.487284, 0.900717], [0.719967, 0.411408]),
            (
                1099511627783,
                3,
                [-0.146795, 0.786141, 0.946822],
                [1.69079, -0.894828],
            ),
            (
                1099511627783,
                16,
                [-0.820135, 0.395631, 0.898908],
                [-1.323346, -1.359769],
            ),
            (
                1099511627783,
                21,
                [-0.820135, 0.395631, 0.898908],
                [-0.885797, 1.197018],
            ),
            (
                1099511627783,
                64,
                [-0.820135, 0.395631, 0.898908],
                [0.283026, 1.185452],
            ),
        ];
        for (seed, len, head, tail) in golden {
            let mut generator = TorchGenerator::new(seed);
            let first = generator.randn(len);
            let second = generator.randn(len);
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 3e-6);
            assert!(close(&first[..3], &head), "seed {seed}, {len}: {first:?}");
            assert!(
                close(&second[len - 2..], &tail),
                "seed {seed}, {len}: {second:?}"
            );
        }
    }
}
