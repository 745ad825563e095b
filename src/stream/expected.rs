//! Pictures that come before their turn: they are compared with the group that entered last while that is still computed.

use std::sync::Arc;

use super::{Mode, Stream};
use crate::device::Device;
use crate::engine::Model;
use crate::error::Result;

/// A picture that has come, and is submitted when its turn comes.
pub struct Expected<D: Device> {
    /// `[1, 3, H, W]`.
    pub(super) picture: D::Tensor,
    pub(super) compared: Option<Compared<D>>,
}

/// How alike a group is to the one that had entered last.
pub(super) struct Compared<D: Device> {
    pub(super) last: Arc<D::Tensor>,
    pub(super) comparison: D::Comparison,
}

impl<D: Device> Expected<D> {
    /// A picture that nobody has compared.
    pub fn new(picture: D::Tensor) -> Self {
        Self {
            picture,
            compared: None,
        }
    }
}

impl<D: Device, M: Model<Tensor = D::Tensor>, T> Stream<D, M, T> {
    /// Whether [`expect`](Self::expect) does anything for a picture that comes now.
    pub fn compares(&self) -> bool {
        // Those of a group are compared together, when the last of them is there.
        self.frame_buffer_size == 1 && self.filters() && self.last_entered.is_some()
    }

    /// Takes note of a picture `[1, 3, H, W]` in [-1, 1] that is submitted when its turn comes, while what was submitted before
    /// may still be computed: it is compared behind that, so that nothing has to be waited for then. What is decided is the
    /// same at whatever time it is expected.
    pub fn expect(&self, picture: D::Tensor) -> Result<Expected<D>> {
        let last = self.last_entered.as_ref().filter(|_| self.compares());
        let compared = match last {
            Some(last) => self.compare(&picture, last)?,
            None => None,
        };
        Ok(Expected { picture, compared })
    }

    /// Begins to compare pictures with those that entered last, if that makes sense.
    pub(super) fn compare(
        &self,
        pictures: &D::Tensor,
        last: &Arc<D::Tensor>,
    ) -> Result<Option<Compared<D>>> {
        if !self.device.same_shape(pictures, last) {
            return Ok(None);
        }
        Ok(Some(Compared {
            comparison: self.device.compare(pictures, last)?,
            last: last.clone(),
        }))
    }

    /// Whether the similarity filter is on. Without pictures to start from, those that come in say nothing about those that
    /// come out.
    pub(super) fn filters(&self) -> bool {
        self.settings.similarity.is_some() && self.settings.mode == Mode::ImageToImage
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::tests::{Scalar, plain, text};
    use super::super::{Conditioning, Contexts, Counters, Settings, Similarity};
    use super::*;
    use crate::device::{Host, HostTensor, Update};
    use crate::model::SchedulerConfig;

    /// The host, which notes down when pictures are compared and when the outcome is read.
    #[derive(Clone, Default)]
    struct Noting(Arc<Mutex<Vec<&'static str>>>);

    impl Noting {
        fn note(&self, what: &'static str) {
            self.0.lock().unwrap().push(what);
        }

        /// What was noted since this was asked last.
        fn noted(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Device for Noting {
        type Tensor = HostTensor;
        type Comparison = f32;

        fn compare(&self, a: &HostTensor, b: &HostTensor) -> Result<f32> {
            self.note("compared");
            Host.compare(a, b)
        }

        fn cosine(&self, comparison: f32) -> Result<f32> {
            self.note("read");
            Ok(comparison)
        }

        fn upload(&self, shape: &[usize], data: &[f32]) -> Result<HostTensor> {
            Host.upload(shape, data)
        }

        fn stack(&self, parts: Vec<HostTensor>) -> Result<HostTensor> {
            Host.stack(parts)
        }

        fn unstack(&self, tensor: HostTensor) -> Vec<HostTensor> {
            Host.unstack(tensor)
        }

        fn same_shape(&self, a: &HostTensor, b: &HostTensor) -> bool {
            Host.same_shape(a, b)
        }

        fn add_noise(
            &self,
            a: f32,
            latents: &HostTensor,
            b: f32,
            noise: &HostTensor,
        ) -> Result<HostTensor> {
            Host.add_noise(a, latents, b, noise)
        }

        fn slerp(&self, share: f64, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
            Host.slerp(share, a, b)
        }

        fn step(&self, updates: Vec<Update<'_, HostTensor>>) -> Result<()> {
            Host.step(updates)
        }

        fn blend(
            &self,
            shares: &[f32],
            over: &HostTensor,
            under: &HostTensor,
        ) -> Result<HostTensor> {
            Host.blend(shares, over, under)
        }

        fn timed<R>(&self, section: usize, work: impl FnOnce() -> R) -> (R, Option<Duration>) {
            Host.timed(section, work)
        }
    }

    type TestStream = Stream<Noting, Scalar, usize>;

    fn filtering(threshold: f64) -> Settings {
        Settings {
            similarity: Some(Similarity {
                threshold,
                max_skip: 4,
            }),
            ..plain(&[32, 45])
        }
    }

    fn conditioning(prompt: f32) -> Conditioning<Scalar> {
        Conditioning {
            prompt: Contexts::new(Arc::new(text(prompt))),
            negative: Contexts::new(Arc::new(text(-0.1))),
        }
    }

    fn stream(f: usize) -> (TestStream, Noting) {
        let device = Noting::default();
        let stream = Stream::new(
            device.clone(),
            Arc::new(Scalar::default()),
            SchedulerConfig::default(),
            (1, 1),
            f,
            filtering(0.9),
            conditioning(0.2),
        );
        (stream.unwrap(), device)
    }

    const FRAMES: usize = 120;

    /// A colour that goes round now slowly, now fast.
    fn picture(frame: usize) -> HostTensor {
        let angle = 0.02 * frame as f32 + (frame / 9) as f32;
        HostTensor::new(&[1, 3, 1, 1], vec![angle.cos(), angle.sin(), 0.5])
    }

    /// Live changes, just before a frame is submitted.
    fn change(stream: &mut TestStream, frame: usize) {
        match frame {
            20 => stream.configure(&plain(&[32, 45])).unwrap(),
            30 => stream.configure(&filtering(0.8)).unwrap(),
            45 => stream.set_conditioning(conditioning(-0.3)),
            60 => stream.reset(),
            70 => {
                let settings = Settings {
                    mode: Mode::TextToImage,
                    ..filtering(0.8)
                };
                stream.configure(&settings).unwrap();
            }
            74 => stream.configure(&filtering(0.9)).unwrap(),
            90 => stream.renew(),
            _ => {}
        }
    }

    /// All frames as they leave, and the counts; `ahead`: how many frames before its turn each is expected, if it is.
    fn run(ahead: Option<usize>) -> (Vec<(usize, f32)>, Counters) {
        let (mut stream, device) = stream(1);
        let mut expected = std::collections::VecDeque::new();
        let mut shown = Vec::new();
        for frame in 0..FRAMES {
            for coming in ahead.iter().flat_map(|ahead| {
                let from = if frame == 0 { 0 } else { frame + ahead };
                from..=frame + ahead
            }) {
                expected.push_back(stream.expect(picture(coming)).unwrap());
            }
            change(&mut stream, frame);
            device.noted();
            let left = match expected.pop_front() {
                Some(expected) => stream.submit_expected(expected, frame),
                None => stream.submit(picture(frame), frame),
            };
            let noted = device.noted();
            if ahead == Some(0) {
                // All that is left to do is to read, but for the frame that the filter is switched on at.
                let late = frame == 30 && noted == ["compared", "read"];
                assert!(noted.is_empty() || noted == ["read"] || late, "{noted:?}");
            }
            shown.extend(left.unwrap());
        }
        shown.extend(stream.drain().unwrap());
        let values = shown.iter().map(|s| (s.tag, s.picture.data()[0])).collect();
        (values, stream.counters())
    }

    /// A picture may be expected at any time, or not at all; also while the frames before it are under way, of which the last
    /// to enter is not known then.
    #[test]
    fn what_is_decided_does_not_depend_on_when_pictures_are_expected() {
        let (shown, counters) = run(None);
        assert!(
            counters.skipped > 30 && counters.processed > 30,
            "{counters:?}"
        );
        for ahead in 0..4 {
            assert_eq!(run(Some(ahead)), (shown.clone(), counters), "{ahead} ahead");
        }
    }

    #[test]
    fn pictures_of_a_group_are_compared_together() {
        let (mut stream, device) = stream(2);
        for frame in 0..6 {
            let expected = stream.expect(picture(frame)).unwrap();
            assert!(device.noted().is_empty());
            stream.submit_expected(expected, frame).unwrap();
            let compared: &[&str] = match frame {
                3 | 5 => &["compared", "read"],
                _ => &[],
            };
            assert_eq!(device.noted(), compared, "frame {frame}");
        }
    }
}
