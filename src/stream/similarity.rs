//! The stochastic similarity filter (arXiv 2312.12491 §3.6): frames much like the last one processed are skipped, by
//! chance, the more likely the more alike they are.

use rand_mt::Mt;

/// Settings of the filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similarity {
    /// Cosine similarity η in [0, 1] from which frames may be skipped.
    pub threshold: f64,
    /// At most this many frames are skipped in a row.
    pub max_skip: u32,
}

impl Similarity {
    /// Eq. 9 of the paper: `max(0, 1 − (1 − cosine)/(1 − η))`; 0 for η ≥ 1, where nothing is ever skipped.
    pub fn skip_probability(&self, cosine: f64) -> f64 {
        if self.threshold >= 1.0 {
            return 0.0;
        }
        (1.0 - (1.0 - cosine) / (1.0 - self.threshold)).clamp(0.0, 1.0)
    }
}

/// The filter's memory: its dice and how many frames it skipped in a row.
#[derive(Debug, Clone)]
pub struct SimilarityFilter {
    dice: Mt,
    skipped_in_a_row: u32,
}

impl SimilarityFilter {
    /// A filter whose dice follow `seed`, so that a run can be repeated.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Mt::new(seed as u32),
            skipped_in_a_row: 0,
        }
    }

    /// Whether to skip a frame this similar to the last one processed.
    pub fn skips(&mut self, settings: Similarity, cosine: f32) -> bool {
        let uniform = f64::from(self.dice.next_u32()) / 2f64.powi(32);
        let skip = self.skipped_in_a_row < settings.max_skip
            && uniform < settings.skip_probability(f64::from(cosine));
        self.skipped_in_a_row = if skip { self.skipped_in_a_row + 1 } else { 0 };
        skip
    }

    /// To be told of frames that are processed without being asked about.
    pub fn processed(&mut self) {
        self.skipped_in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from eq. 9.
    #[test]
    fn probability_is_eq_9() {
        let filter = |threshold| Similarity {
            threshold,
            max_skip: 10,
        };
        for (threshold, cosine, expected) in [
            (0.98, 1.0, 1.0),
            (0.98, 0.99, 0.5),
            (0.98, 0.98, 0.0),
            (0.98, 0.5, 0.0),
            (0.0, 0.25, 0.25),
            (1.0, 1.0, 0.0),
        ] {
            let p = filter(threshold).skip_probability(cosine);
            assert!(
                (p - expected).abs() < 1e-9,
                "{threshold} {cosine}: {p}, not {expected}"
            );
        }
    }

    #[test]
    fn still_picture_is_processed_once_in_max_skip_plus_one() {
        let settings = Similarity {
            threshold: 0.98,
            max_skip: 3,
        };
        let mut filter = SimilarityFilter::new(1);
        let skips: Vec<bool> = (0..8).map(|_| filter.skips(settings, 1.0)).collect();
        assert_eq!(skips, [true, true, true, false, true, true, true, false]);
    }

    #[test]
    fn the_share_skipped_is_the_probability() {
        let settings = Similarity {
            threshold: 0.9,
            max_skip: u32::MAX,
        };
        let mut filter = SimilarityFilter::new(7);
        let skipped = (0..20_000).filter(|_| filter.skips(settings, 0.93)).count();
        // Five standard deviations of a binomial with p = 0.3.
        assert!((skipped as f64 - 6_000.0).abs() < 5.0 * 64.8, "{skipped}");
    }
}
