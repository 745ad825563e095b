//! How the noise that frames enter with changes from one frame to the next.

use super::noise::TorchGenerator;
use crate::device::Device;
use crate::error::Result;

/// The noise of a frame's first step. The noise added between later steps stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variation {
    /// The same for all frames.
    #[default]
    Fixed,
    /// That of the next seed for every frame: frame k enters with the noise of seed + k, those that prime a stream counted.
    Fresh,
    /// From one seed's noise to the next one's in this many frames (at least 1), along the arc between them.
    Walk { frames: u32 },
}

/// Draws the noise of frame after frame.
#[derive(Debug)]
pub struct Noises<T> {
    variation: Variation,
    seed: u64,
    /// How many seeds it has gone past, a part of the way to the next included.
    position: f64,
    /// How many seeds it has gone past, and the maps that a walk is between.
    leg: Option<(u64, T, T)>,
}

impl<T: Clone> Noises<T> {
    /// Begins at `seed`.
    pub fn new(variation: Variation, seed: u64) -> Self {
        Self {
            variation,
            seed,
            position: 0.0,
            leg: None,
        }
    }

    /// Goes on by `variation`; begins anew at another seed, or with noise that is the seed's own again. A walk that changes
    /// its speed does not jump.
    pub fn set(&mut self, variation: Variation, seed: u64) {
        if seed != self.seed || variation == Variation::Fixed {
            *self = Self::new(variation, seed);
        }
        self.variation = variation;
    }

    /// The noise map of the next frame on `device`, of `shape`, which is always the same; `None` where it is the seed's own.
    pub fn next(&mut self, device: &impl Device<Tensor = T>, shape: &[usize]) -> Result<Option<T>> {
        let step = match self.variation {
            Variation::Fixed => return Ok(None),
            Variation::Fresh => 1.0,
            Variation::Walk { frames } => 1.0 / f64::from(frames.max(1)),
        };
        // Sums of thirds and the like may stay a hair below the whole number they stand for.
        let position = self.position + 1e-9;
        let (passed, share) = (position.floor() as u64, position.fract());
        let (seed, len) = (self.seed, shape.iter().product());
        let map = |passed: u64| {
            let map = TorchGenerator::new(seed.wrapping_add(passed)).randn(len);
            device.upload(shape, &map)
        };
        let next = match self.variation {
            Variation::Fresh => map(passed)?,
            _ => {
                let (_, from, to) = match self.leg.take() {
                    Some(leg) if leg.0 == passed => self.leg.insert(leg),
                    // Where the last leg ended, the next one begins.
                    Some((before, _, from)) if before + 1 == passed => {
                        self.leg.insert((passed, from, map(passed + 1)?))
                    }
                    _ => self.leg.insert((passed, map(passed)?, map(passed + 1)?)),
                };
                device.slerp(share, from, to)?
            }
        };
        self.position += step;
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Host, HostTensor};

    fn map(seed: u64) -> Vec<f32> {
        TorchGenerator::new(seed).randn(64)
    }

    fn begin(variation: Variation, seed: u64) -> Noises<HostTensor> {
        Noises::new(variation, seed)
    }

    impl Noises<HostTensor> {
        fn drawn(&mut self) -> Option<Vec<f32>> {
            let next = self.next(&Host, &[1, 1, 8, 8]).unwrap();
            next.map(HostTensor::into_data)
        }
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn fresh_noise_is_that_of_seed_after_seed() {
        let mut noises = begin(Variation::Fresh, 7);
        for seed in 7..10 {
            assert_eq!(noises.drawn(), Some(map(seed)));
        }
        assert_eq!(begin(Variation::Fixed, 7).drawn(), None);
        let mut last = begin(Variation::Fresh, u64::MAX);
        last.drawn();
        assert_eq!(last.drawn(), Some(map(0)));
    }

    #[test]
    fn a_walk_goes_from_seed_to_seed_in_even_steps() {
        let mut noises = begin(Variation::Walk { frames: 4 }, 3);
        let walk: Vec<_> = (0..9).map(|_| noises.drawn().unwrap()).collect();
        assert!(close(&walk[0], &map(3)));
        assert!(close(&walk[4], &map(4)));
        assert!(close(&walk[8], &map(5)));
        let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let gap =
            |a: &[f32], b: &[f32]| length(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
        let steps: Vec<_> = walk[..5].windows(2).map(|w| gap(&w[0], &w[1])).collect();
        let (least, most) = (
            length(&map(3)).min(length(&map(4))),
            length(&map(3)).max(length(&map(4))),
        );
        // The arc between vectors of different lengths is a spiral, so neither is exact.
        for (step, at) in steps.iter().zip(&walk) {
            assert!((step / steps[0] - 1.0).abs() < 0.25, "{steps:?}");
            assert!((0.9 * least..1.1 * most).contains(&length(at)));
        }
    }

    #[test]
    fn a_walk_that_changes_its_speed_does_not_jump() {
        let mut noises = begin(Variation::Walk { frames: 4 }, 3);
        noises.drawn();
        noises.drawn();
        let mut steady = begin(Variation::Walk { frames: 4 }, 3);
        let expected = [0, 1, 2].map(|_| steady.drawn().unwrap());
        // A controller sets it for every frame.
        noises.set(Variation::Walk { frames: 1000 }, 3);
        assert!(close(&noises.drawn().unwrap(), &expected[2]));
        let slow = noises.drawn().unwrap();
        let gap = slow.iter().zip(&expected[2]).map(|(a, b)| (a - b).abs());
        let gap = gap.fold(0f32, f32::max);
        assert!(gap > 1e-4 && gap < 0.02, "{gap}");
        noises.set(Variation::Fresh, 3);
        assert_eq!(noises.drawn(), Some(map(3)));
        noises.set(Variation::Fresh, 9);
        assert_eq!(noises.drawn(), Some(map(9)));
        noises.set(Variation::Fixed, 9);
        assert_eq!(noises.drawn(), None);
    }
}
