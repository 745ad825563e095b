//! The times of frames, those that carry none included.

/// Tells the running time of frame after frame.
#[derive(Default)]
pub struct FrameClock {
    /// When the frame that was seen last ends.
    next: Option<gst::ClockTime>,
}

impl FrameClock {
    /// The time of the next frame, which may say it itself. Frames that do not follow upon one another by their durations,
    /// from 0 on; without those nothing is known.
    pub fn see(
        &mut self,
        time: Option<gst::ClockTime>,
        duration: Option<gst::ClockTime>,
    ) -> Option<gst::ClockTime> {
        let time = time
            .or(self.next)
            .or(duration.map(|_| gst::ClockTime::ZERO));
        self.next = match (time, duration) {
            (Some(time), Some(duration)) => Some(time.saturating_add(duration)),
            _ => None,
        };
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_without_times_follow_upon_one_another() {
        let ms = gst::ClockTime::from_mseconds;
        let mut clock = FrameClock::default();
        assert_eq!(clock.see(None, None), None);
        assert_eq!(clock.see(None, Some(ms(40))), Some(ms(0)));
        assert_eq!(clock.see(None, Some(ms(20))), Some(ms(40)));
        assert_eq!(clock.see(Some(ms(500)), Some(ms(40))), Some(ms(500)));
        assert_eq!(clock.see(None, None), Some(ms(540)));
        assert_eq!(clock.see(None, None), None);
        assert_eq!(clock.see(Some(ms(7)), None), Some(ms(7)));
        let end = gst::ClockTime::MAX;
        assert_eq!(clock.see(Some(end), Some(end)), Some(end));
    }
}
