//! What the worker does for a frame while the one before it is still being computed, on the stand-in that computes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_video::VideoInfo;
use parking_lot::Mutex;

use super::calls::Calls;
use super::tests::{caps, gpu, model, paint, sharing, source};
use crate::computing::{self, When};
use crate::element::caps::Memory;
use crate::element::runtime::cuda::Door;
use crate::element::settings::{Prompts, Settings};
use crate::element::skipping::Change;
use crate::element::stats::Stats;
use crate::element::venue::Venue;
use crate::element::worker::{
    Frame, Interrupt, Loading, Moment, Observer, Restyled, Stamp, Teller, Worker,
};
#[cfg(feature = "tensorrt")]
use crate::engine::BuildProgress;
use crate::error::Error;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody is told anything but errors, of which there are none.
struct Deaf;

impl Observer for Deaf {
    fn loading(&self, _: Loading<'_>) {}
    fn prompts_turn(&self, _: &Prompts, _: u64, _: Stamp) {}
    fn prompts_applied(&self, _: &Prompts, _: Stamp) {}
    fn skipping(&self, _: Change, _: Stamp) {}
    fn teller(&self) -> Option<Teller> {
        None
    }
    fn moved(&self, venue: &Venue, reason: &str) {
        panic!("moved to {}: {reason}", venue.name());
    }
    fn failed(&self, error: &Error) {
        panic!("{error}");
    }
    fn change_refused(&self, error: &Error) {
        panic!("{error}");
    }
    fn warned(&self, error: &Error) {
        panic!("{error}");
    }
    #[cfg(feature = "tensorrt")]
    fn building(&self, _: &BuildProgress) {}
}

/// On a GPU whose compute stream does nothing until somebody waits for it.
#[test]
fn a_picture_is_compared_behind_the_frame_before_it() {
    let name = "element::cuda::overlap::a_picture_is_compared_behind_the_frame_before_it";
    computing::run(name, &[], &[When::Late, When::CopiesEarly], || {
        let machine = gpu();
        let gpu = machine.open();
        let worker = Worker::new(
            model(),
            Venue::Gpu(gpu.clone()),
            false,
            Arc::new(Mutex::new(Stats::default())),
            Deaf,
        )
        .unwrap();
        let asker = worker.asker().unwrap();
        let interrupt = Interrupt::default();
        for memory in [Memory::Cuda, Memory::System] {
            let caps = caps("NV12", (64, 64), memory);
            let info = VideoInfo::from_caps(&caps).unwrap();
            let door = Door::new(gpu.clone(), &info, (64, 64), &info);
            let pool = source(sharing(&gpu), &caps);
            let settings = Arc::new(Settings {
                t_index_list: Some("45".into()),
                similarity_filter: true,
                // Frames are compared, and none is skipped.
                ssf_threshold: 1.0,
                ..Settings::default()
            });
            let expect = |ticket: u64| {
                let mut buffer = pool.acquire_buffer(None).unwrap();
                paint(buffer.get_mut().unwrap(), &info, ticket);
                asker.expect(ticket, door.import(&buffer).unwrap());
            };
            let restyle = |ticket: u64| -> Restyled {
                let moment = Moment {
                    time: None,
                    cue: None,
                    exact: false,
                };
                let frame = Frame {
                    ticket,
                    stamp: Stamp::default(),
                    settings: settings.clone(),
                    moment,
                    prime: false,
                    again: false,
                };
                let answer = asker.restyle(&interrupt, frame).unwrap();
                answer.wait(&interrupt).unwrap()
            };
            asker.reset();
            // Settled: what is put on the stream is one graph, which does not wait for anything.
            for ticket in 0..8 {
                expect(ticket);
                let restyled = restyle(ticket);
                assert!(restyled.processed);
                restyled.computing.wait().unwrap();
            }
            let calls = Calls::open();
            for ticket in 9..14 {
                expect(ticket);
                let restyled = restyle(ticket);
                assert!(!restyled.computing.is_over(), "the worker waited for it");
                let launched = calls.of("cuLaunchKernel");
                expect(ticket + 10);
                // Taken in, and compared.
                let begun = Instant::now();
                while calls.of("cuLaunchKernel") < launched + 2 && begun.elapsed() < PATIENCE {
                    std::thread::yield_now();
                }
                assert_eq!(calls.of("cuLaunchKernel"), launched + 2);
                assert!(
                    !restyled.computing.is_over(),
                    "the comparison waited for it"
                );
                restyled.computing.wait().unwrap();
                // When its turn comes there is nothing to launch for that.
                let launched = calls.of("cuLaunchKernel");
                let restyled = restyle(ticket + 10);
                assert_eq!(calls.of("cuLaunchKernel"), launched);
                assert!(restyled.processed);
                // Never waited for: then it is let go of when it is done.
                drop(restyled);
            }
        }
        // It ends when nobody can ask any more.
        drop(asker);
        drop(worker);
    });
}
