//! In which order the CUDA device has things done, and what becomes of errors that stick: on a stand-in for the driver
//! (`standin/driver.c`), which puts work off, or does it early, as far as events allow.

#![cfg(all(feature = "cuda", target_os = "linux"))]

mod standin;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gststreamdiffusion::device::cuda::{Cuda, CudaTensor, Download, Element, Upload, Work};
use gststreamdiffusion::device::video::{Colour, PixelFormat, VideoLayout};
use gststreamdiffusion::error::Result;
use libloading::Library;
use standin::Seen;

/// The streams, in the order in which the device makes them.
const COMPUTE: i32 = 0;
const UPLOAD: i32 = 1;
const DOWNLOAD: i32 = 2;
/// A picture, and a frame of as many bytes: so they get each other's memory from the pool.
const PICTURE: (usize, usize) = (8, 8);
const FRAME: (usize, usize) = (16, 8);

/// The functions of the stand-in that are the tests' own.
struct Driver(Library);

impl Driver {
    /// Runs `scenario` with the stand-in, in a process of its own.
    fn run(test: &str, scenario: impl Fn(&Self)) {
        if standin::library().is_some() {
            let driver = Self::open();
            scenario(&driver);
            assert_eq!(driver.number(c"standin_misused"), 0);
            return;
        }
        standin::run(test, &["tests/standin/driver.c"], Seen::ByAll, |_, _| ());
    }

    /// The stand-in, in a process that has it.
    fn open() -> Self {
        let library = standin::library().unwrap();
        // SAFETY: it has no initialisers, and cudarc opens it too.
        Self(unsafe { Library::new(library) }.unwrap())
    }

    fn number(&self, name: &std::ffi::CStr) -> i64 {
        // SAFETY: as its source has it.
        unsafe { self.0.get::<unsafe extern "C" fn() -> i64>(name).unwrap()() }
    }

    fn set(&self, name: &std::ffi::CStr, value: i32) {
        // SAFETY: as its source has it.
        unsafe { self.0.get::<unsafe extern "C" fn(i32)>(name).unwrap()(value) }
    }

    /// Whether a stream does its work as early as events allow, or when something waits for it.
    fn eager(&self, stream: i32, eager: bool) {
        // SAFETY: as its source has it.
        unsafe {
            let set = self
                .0
                .get::<unsafe extern "C" fn(i32, i32)>(c"standin_eager");
            set.unwrap()(stream, eager.into());
        }
    }

    /// How much a stream has still to do.
    fn pending(&self, stream: i32) -> i64 {
        // SAFETY: as its source has it.
        unsafe {
            let pending = self
                .0
                .get::<unsafe extern "C" fn(i32) -> i64>(c"standin_pending");
            pending.unwrap()(stream)
        }
    }
}

fn layout() -> VideoLayout {
    VideoLayout::dense(PixelFormat::Rgb, FRAME.0, FRAME.1).unwrap()
}

fn upload(cuda: &Cuda, frame: u64) -> Upload {
    let mut bytes = vec![0; layout().size()];
    bytes[..8].copy_from_slice(&frame.to_le_bytes());
    let upload = cuda.upload_frame(&bytes, &layout()).unwrap();
    // It has been read.
    bytes.fill(0xff);
    upload
}

fn import(cuda: &Cuda, upload: Upload) -> CudaTensor {
    cuda.import_upload(upload, Colour::FULL_RGB, PICTURE)
        .unwrap()
}

fn download(cuda: &Cuda, picture: &CudaTensor) -> Download {
    let colour = Colour::FULL_RGB;
    cuda.download_frame(picture, &layout(), colour).unwrap()
}

#[track_caller]
fn arrives(download: Download, frame: u64) {
    let mut bytes = vec![0xff; layout().size()];
    download.finish(&mut bytes).unwrap();
    let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(found, frame, "another frame came, or none");
}

/// Notes down what stands for a model: it reads and writes where it always does.
fn compute(cuda: &Cuda, picture: &CudaTensor, fixed: &CudaTensor) -> CudaTensor {
    let shown = cuda.empty(picture.shape(), Element::F16).unwrap();
    cuda.copy(&[picture], fixed, 1.0, 0.0).unwrap();
    cuda.copy(&[fixed], &shown, 1.0, 0.0).unwrap();
    shown
}

/// Every frame comes out as itself, whichever stream runs ahead of which.
#[test]
fn no_frame_is_taken_for_another() {
    Driver::run("no_frame_is_taken_for_another", |driver| {
        for eager in 0..8 {
            for stream in [COMPUTE, UPLOAD, DOWNLOAD] {
                driver.eager(stream, eager >> stream & 1 == 1);
            }
            let cuda = Cuda::new(0).unwrap();
            let fixed = cuda.empty(&[1, 3, PICTURE.1, PICTURE.0], Element::F16);
            let fixed = fixed.unwrap();
            let mut coming = None;
            let mut next = upload(&cuda, 0);
            for frame in 0..60 {
                let picture = import(&cuda, next);
                // As the streaming thread does while the worker computes.
                next = upload(&cuda, frame + 1);
                let shown = compute(&cuda, &picture, &fixed);
                drop(picture);
                if let Some(before) = coming.take() {
                    arrives(before, frame - 1);
                }
                coming = Some(download(&cuda, &shown));
                // Frames that a flush throws away on either side.
                if frame % 7 == 3 {
                    // Memory that still has to be read goes to the next ones.
                    let picture = import(&cuda, upload(&cuda, 777));
                    let late = download(&cuda, &picture);
                    drop(picture);
                    drop((0..6).map(|_| upload(&cuda, 999)).collect::<Vec<_>>());
                    drop((0..6).map(|_| download(&cuda, &shown)).collect::<Vec<_>>());
                    arrives(late, 777);
                }
                // At once, and without anything else being waited for.
                let straight =
                    cuda.import_host(&vec![7; 384], &layout(), Colour::FULL_RGB, PICTURE);
                arrives(
                    download(&cuda, &straight.unwrap()),
                    u64::from_le_bytes([7; 8]),
                );
            }
            drop(coming);
            drop(next);
            assert!(cuda.launches().graphs > 40, "{:?}", cuda.launches());
            drop((fixed, cuda));
            assert_eq!(driver.number(c"standin_live"), 0, "streams {eager:03b}");
            assert_eq!(driver.number(c"standin_held"), 0);
        }
    });
}

/// Both sides of the element, each on its thread.
#[test]
fn threads_hand_frames_to_each_other() {
    Driver::run("threads_hand_frames_to_each_other", |driver| {
        for eager in 0..8 {
            for stream in [COMPUTE, UPLOAD, DOWNLOAD] {
                driver.eager(stream, eager >> stream & 1 == 1);
            }
            let cuda = Cuda::new(0).unwrap();
            let (up, arriving) = std::sync::mpsc::sync_channel(2);
            let (done, leaving) = std::sync::mpsc::sync_channel(2);
            let gpu = &cuda;
            std::thread::scope(|scope| {
                scope.spawn(move || (0..300).for_each(|k| up.send(upload(gpu, k)).unwrap()));
                scope.spawn(move || {
                    let fixed = gpu.empty(&[1, 3, PICTURE.1, PICTURE.0], Element::F16);
                    let fixed = fixed.unwrap();
                    for _ in 0..300 {
                        let picture = import(gpu, arriving.recv().unwrap());
                        let shown = compute(gpu, &picture, &fixed);
                        gpu.finish().unwrap();
                        done.send(download(gpu, &shown)).unwrap();
                    }
                    drop(fixed);
                    gpu.release_thread();
                });
                scope.spawn(move || (0..300).for_each(|k| arrives(leaving.recv().unwrap(), k)));
            });
            drop(cuda);
            assert_eq!(driver.number(c"standin_live"), 0, "streams {eager:03b}");
        }
    });
}

/// An engine's work, in the midst of whose frame something happens on another thread.
struct Meanwhile<F>(F, AtomicUsize);

impl<F: Fn() + Send + Sync> Work for Meanwhile<F> {
    fn enqueue(&self) -> Result<()> {
        std::thread::scope(|scope| scope.spawn(&self.0).join()).unwrap();
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn capturable(&self) -> bool {
        false
    }
}

/// While a frame is computed, the next one comes up and the last one goes down: neither waits for the computing.
#[test]
fn copies_do_not_wait_for_what_is_computed() {
    Driver::run("copies_do_not_wait_for_what_is_computed", |driver| {
        driver.eager(UPLOAD, true);
        let cuda = Cuda::new(0).unwrap();
        let library = Driver::open();
        let fixed = cuda.empty(&[1, 3, PICTURE.1, PICTURE.0], Element::F16);
        let fixed = fixed.unwrap();
        // Blocks for frames that are on their way at the same time.
        let (first, second) = (upload(&cuda, 1), upload(&cuda, 2));
        let (first, second) = (import(&cuda, first), import(&cuda, second));
        cuda.finish().unwrap();
        let before = Arc::new(parking_lot::Mutex::new(Some(download(&cuda, &first))));
        let after = Arc::new(parking_lot::Mutex::new(None));

        let shown = compute(&cuda, &second, &fixed);
        let meanwhile = {
            let (cuda, before, after) = (cuda.clone(), before.clone(), after.clone());
            move || {
                let computing = library.pending(COMPUTE);
                assert!(computing > 0, "nothing is computed");
                *after.lock() = Some(upload(&cuda, 3));
                assert_eq!(library.pending(UPLOAD), 0, "the next frame waits");
                assert_eq!(library.pending(COMPUTE), computing);
                arrives(before.lock().take().unwrap(), 1);
                assert!(library.pending(COMPUTE) > 0, "the last frame waited");
            }
        };
        let work = Arc::new(Meanwhile(meanwhile, AtomicUsize::new(0)));
        cuda.run(work.clone()).unwrap();
        arrives(download(&cuda, &shown), 2);
        assert_eq!(work.1.load(Ordering::SeqCst), 1);
        let third = after.lock().take().unwrap();
        arrives(download(&cuda, &import(&cuda, third)), 3);
    });
}

/// An error that sticks is told with what helps; then all is new, or nothing more can be had, as the driver has it.
#[test]
fn a_lost_context_is_followed_by_a_new_one_or_by_what_helps() {
    let name = "a_lost_context_is_followed_by_a_new_one_or_by_what_helps";
    Driver::run(name, |driver| {
        let works = |cuda: &Cuda| {
            let picture = import(cuda, upload(cuda, 5));
            arrives(download(cuda, &picture), 5);
            assert!(cuda.check().is_ok());
        };
        let fails = |result: Result<()>, parts: &[&str]| {
            let message = result.unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        };
        // Frames, lists and graphs that were under way when it happened go with it.
        let lose = |code: i32, name: &str| {
            let cuda = Cuda::new(0).unwrap();
            works(&cuda);
            let fixed = cuda.empty(&[1, 3, PICTURE.1, PICTURE.0], Element::F16);
            let fixed = fixed.unwrap();
            let mut shown = None;
            for frame in 0..6 {
                let picture = import(&cuda, upload(&cuda, frame));
                shown = Some(compute(&cuda, &picture, &fixed));
                cuda.finish().unwrap();
            }
            let (up, down) = (upload(&cuda, 8), download(&cuda, &shown.unwrap()));
            compute(&cuda, &fixed, &fixed);
            driver.set(c"standin_fail", code);
            let parts = [name, "stopped", "NULL", "the program is started again"];
            fails(cuda.finish(), &parts);
            fails(down.finish(&mut [0; 384]), &[name, "NULL"]);
            fails(cuda.check(), &[name, "NULL"]);
            // Not while somebody has what was lost.
            fails(Cuda::new(0).map(drop), &["GPU 0", name, "NULL"]);
            drop((up, fixed, cuda));
        };
        lose(700, "CUDA_ERROR_ILLEGAL_ADDRESS");
        works(&Cuda::new(0).unwrap());
        assert_eq!(driver.number(c"standin_live"), 0);
        assert_eq!(driver.number(c"standin_resets"), 0);

        // As libraries do that keep the context until the process ends.
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe {
            let retain = driver
                .0
                .get::<unsafe extern "C" fn(*mut *mut u8, i32) -> i32>(c"cuDevicePrimaryCtxRetain");
            assert_eq!(retain.unwrap()(&mut context, 0), 0);
        }
        lose(719, "CUDA_ERROR_LAUNCH_FAILED");
        works(&Cuda::new(0).unwrap());
        assert_eq!(driver.number(c"standin_resets"), 1);
        assert_eq!(driver.number(c"standin_live"), 0);

        lose(214, "CUDA_ERROR_ECC_UNCORRECTABLE");
        driver.set(c"standin_refuse_resets", 1);
        let parts = [
            "GPU 0",
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "start the program again",
        ];
        fails(Cuda::new(0).map(drop), &parts);
        driver.set(c"standin_refuse_resets", 0);
        works(&Cuda::new(0).unwrap());

        // As drivers do after most of these errors: however often it is asked, and nothing is left held by that.
        for how in [1, 2] {
            driver.set(c"standin_never_again", how);
            lose(700, "CUDA_ERROR_ILLEGAL_ADDRESS");
            let before = driver.number(c"standin_held");
            for _ in 0..3 {
                let parts = [
                    "GPU 0 failed before",
                    "CUDA_ERROR_ILLEGAL_ADDRESS",
                    "start the program again",
                ];
                fails(Cuda::new(0).map(drop), &parts);
                assert_eq!(driver.number(c"standin_held"), before, "{how}");
                assert_eq!(driver.number(c"standin_live"), 0, "{how}");
                // What needs no context is told as before.
                assert_eq!(Cuda::count().unwrap(), 1);
                assert_eq!(Cuda::compute_capability(0).unwrap(), (8, 9));
            }
            driver.set(c"standin_never_again", 0);
            works(&Cuda::new(0).unwrap());
        }

        // One that was opened anew is another one.
        let first = Cuda::new(0).unwrap();
        let second = Cuda::new(0).unwrap();
        assert_ne!(first.identity(), second.identity());
        let stray = second.import_upload(upload(&first, 1), Colour::FULL_RGB, PICTURE);
        fails(stray.map(drop), &["input", "another device"]);
    });
}

#[test]
fn what_a_gpu_lacks_is_told() {
    Driver::run("what_a_gpu_lacks_is_told", |driver| {
        let message = |result: Result<()>| result.unwrap_err().to_string();
        let text = message(Cuda::new(3).map(drop));
        assert!(text.contains("property device-id"), "{text}");
        assert!(text.contains("no GPU 3; there is one, number 0"), "{text}");
        driver.set(c"standin_version", 11080);
        let text = message(Cuda::new(0).map(drop));
        assert!(text.contains("is for CUDA 11.8; expected"), "{text}");
        assert!(text.contains("CUDA 12.0 or newer"), "{text}");
        driver.set(c"standin_version", 13000);
        let cuda = Cuda::new(0).unwrap();
        let kept = cuda.empty(&[1000, 1000], Element::F16).unwrap();
        driver.set(c"standin_memory", 3 << 20);
        let text = message(cuda.empty(&[1000, 1000], Element::F16).map(drop));
        assert!(
            text.contains("2.0 MB are needed, 1.1 MB are free"),
            "{text}"
        );
        // What is not in use makes room.
        drop(kept);
        assert!(cuda.empty(&[1200, 1000], Element::F16).is_ok());
        let text = message(cuda.empty(&[1 << 40, 1 << 40], Element::F16).map(drop));
        assert!(text.contains("larger than any memory"), "{text}");
        let large = VideoLayout::dense(PixelFormat::Rgb, 2000, 1000).unwrap();
        let text = message(cuda.upload_frame(&vec![0; large.size()], &large).map(drop));
        assert!(text.contains("OUT_OF_MEMORY"), "{text}");
    });
}
