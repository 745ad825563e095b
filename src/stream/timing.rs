//! How long the stages of a frame take.

use std::collections::VecDeque;
use std::time::Duration;

use crate::device::Device;

/// The stages that cost time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Image encoder.
    Encode,
    /// U-Net, all rows. What must be computed ahead for them first counts on the host; a GPU does it beside what is timed.
    Denoise,
    /// Image decoder.
    Decode,
}

/// Durations kept per stage: about ten seconds of video.
const KEPT: usize = 256;

/// The last durations of each stage.
#[derive(Debug, Clone, Default)]
pub struct StageTimes([VecDeque<Duration>; 3]);

impl StageTimes {
    /// Runs `work` and notes how long it took `device` as `stage`.
    pub fn measure<R>(
        &mut self,
        device: &impl Device,
        stage: Stage,
        work: impl FnOnce() -> R,
    ) -> R {
        let (result, took) = device.timed(stage as usize, work);
        let durations = &mut self.0[stage as usize];
        if durations.len() == KEPT && took.is_some() {
            durations.pop_front();
        }
        durations.extend(took);
        result
    }

    /// The last duration of `stage` that was noted.
    pub fn latest(&self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize].back().copied()
    }

    /// The `share` quantile (0.5: the median) of the durations of `stage` kept, zero when there are none.
    pub fn quantile(&self, stage: Stage, share: f64) -> Duration {
        let mut durations: Vec<_> = self.0[stage as usize].iter().copied().collect();
        durations.sort_unstable();
        let index = (durations.len().saturating_sub(1) as f64 * share).round() as usize;
        durations.get(index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Host;

    #[test]
    fn quantiles_of_what_was_measured() {
        let mut times = StageTimes::default();
        assert_eq!(times.quantile(Stage::Encode, 0.5), Duration::ZERO);
        times.0[0].extend((1..=100).map(Duration::from_millis));
        assert_eq!(
            times.quantile(Stage::Encode, 0.5),
            Duration::from_millis(51)
        );
        assert_eq!(
            times.quantile(Stage::Encode, 0.95),
            Duration::from_millis(95)
        );
        assert_eq!(times.quantile(Stage::Denoise, 0.5), Duration::ZERO);
        let latest = times.latest(Stage::Encode);
        assert_eq!(latest, Some(Duration::from_millis(100)));
        assert_eq!(times.latest(Stage::Denoise), None);
        assert_eq!(times.measure(&Host, Stage::Denoise, || 7), 7);
        assert_eq!(times.0[Stage::Denoise as usize].len(), 1);
    }
}
