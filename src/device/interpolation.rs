//! What lies between vectors.

use super::host::HostTensor;
use super::host::arc::{slerp, weighted};

/// How vectors are blended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Interpolation {
    /// Along the straight line: weighted means.
    #[default]
    Linear,
    /// Along the arc, so that lengths are kept where both ends have the same.
    Spherical,
}

impl Interpolation {
    /// The tensor at `share` (0…1) of the way from `a` to `b`, which have one shape, in main memory. The vectors along its last
    /// axis are blended each by itself.
    pub fn between(self, a: &HostTensor, b: &HostTensor, share: f64) -> HostTensor {
        let data = match self {
            Self::Linear => weighted(a.data(), b.data(), 1.0 - share, share),
            Self::Spherical => {
                let width = a.shape().last().copied().unwrap_or(1).max(1);
                let rows = a.data().chunks(width).zip(b.data().chunks(width));
                rows.flat_map(|(a, b)| slerp(a, b, share)).collect()
            }
        };
        HostTensor::new(a.shape(), data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.spatial.geometric_slerp([1, 0], [0, 1], 1/3) and the weighted mean for parallel vectors.
    #[test]
    fn slerp_is_on_the_arc() {
        let close = |found: Vec<f32>, expected: [f32; 2]| {
            let pairs = found.iter().zip(&expected);
            let close = found.len() == 2 && pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "{found:?}, not {expected:?}");
        };
        close(slerp(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0), [0.866025, 0.5]);
        close(slerp(&[1.0, 1.0], &[2.0, 2.0], 0.5), [1.5, 1.5]);
        close(slerp(&[0.0, 0.0], &[2.0, 4.0], 0.25), [0.5, 1.0]);
        close(slerp(&[1.0, 0.0], &[-1.0, 0.0], 0.25), [0.5, 0.0]);
    }
}
