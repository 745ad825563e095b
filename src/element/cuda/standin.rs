//! GStreamer's real CUDA library on a stand-in for the driver: contexts, pools and maps, without a GPU.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use gst::glib;
use gst::glib::translate::ToGlibPtr;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo, VideoMeta};
use libloading::Library;

use super::library::Functions;
use super::{Context, Gpu, Mapped, Sharing, is_cuda, memory};
use crate::element::caps::{CUDA_FORMATS, CUDA_MEMORY, FORMATS};
use crate::element::layout::layout;
use crate::engine::onnxruntime::cuda_available;
use crate::standin::{self as driver, Seen};

const PRIMARY: *mut c_void = 0x77 as *mut c_void;

#[test]
fn memory_is_shared_by_gstreamers_own_library() {
    if let Some(library) = driver::library() {
        gst::init().unwrap();
        // SAFETY: the stand-in, which libgstcuda opens too.
        let library = unsafe { Library::new(library) }.unwrap();
        // SAFETY: as its source says.
        let live = unsafe {
            *library
                .get::<unsafe extern "C" fn() -> i64>(c"standin_live")
                .unwrap()
        };
        // SAFETY: reads a number.
        let live = || unsafe { live() };
        contexts_are_wrapped_once_and_kept_alive();
        neighbours_understand_our_contexts();
        maps_are_of_one_frame();
        assert_eq!(live(), 0);
        every_format_lies_where_its_meta_says();
        pools_belong_to_a_context();
        assert_eq!(live(), 0);
        elements_say_what_is_missing();
        return;
    }
    in_a_process(
        "memory_is_shared_by_gstreamers_own_library",
        "src/element/cuda/standin.c",
    );
}

/// An element whose GPU failed starts again when all that was on it is gone, and not before.
#[test]
fn a_gpu_that_failed_is_opened_anew() {
    let test = "a_gpu_that_failed_is_opened_anew";
    let Some(library) = driver::library() else {
        return in_a_process(test, "tests/standin/driver.c");
    };
    gst::init().unwrap();
    // SAFETY: the stand-in, which has no initialisers.
    let library = unsafe { Library::new(library) }.unwrap();
    // SAFETY: as its source says.
    let fail = unsafe { library.get::<unsafe extern "C" fn(c_int)>(c"standin_fail") }.unwrap();
    let gpu = Gpu::open(0).unwrap();
    let identity = gpu.cuda.identity();
    assert!(Arc::ptr_eq(&gpu, &Gpu::open(0).unwrap()));
    // SAFETY: sets a number: an illegal address.
    unsafe { fail(700) };
    let message = Gpu::open(0).err().unwrap().to_string();
    for part in ["CUDA_ERROR_ILLEGAL_ADDRESS", "state NULL"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    drop(gpu);
    let gpu = Gpu::open(0).unwrap();
    assert_ne!(gpu.cuda.identity(), identity);
    gpu.cuda.check().unwrap();
}

/// Runs a test of this file in a process that has the stand-in made of `source`.
fn in_a_process(test: &str, source: &str) {
    let name = format!("element::cuda::standin::{test}");
    driver::run(&name, &[source], Seen::ByAll, |command, folder| {
        command
            .env("GST_STREAMDIFFUSION_ENGINES", folder.join("engines"))
            .env("G_DEBUG", "fatal-criticals");
    });
}

fn sharing(number: usize, keep: Arc<()>) -> Sharing {
    let functions = Functions::get().unwrap();
    let context = Context::primary(functions, number, PRIMARY, || keep).unwrap();
    Sharing { functions, context }
}

fn caps(format: &str, width: i32, height: i32) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .features([CUDA_MEMORY])
        .field("format", format)
        .field("width", width)
        .field("height", height)
        .field("framerate", gst::Fraction::new(25, 1))
        .build()
}

fn pool(sharing: &Sharing, caps: &gst::Caps) -> gst::BufferPool {
    let info = VideoInfo::from_caps(caps).unwrap();
    let (pool, size) = sharing
        .pool(None, caps, (info.size() as u32, 0, 0))
        .unwrap();
    assert!(size >= info.size() as u32);
    pool.set_active(true).unwrap();
    pool
}

fn contexts_are_wrapped_once_and_kept_alive() {
    let kept = Arc::new(());
    let first = sharing(0, kept.clone());
    let again = sharing(0, Arc::new(()));
    assert!(first.context == again.context);
    assert_eq!(first.context.device(), 0);
    let other = sharing(1, kept.clone());
    assert!(other.context != first.context);
    assert_eq!(other.context.device(), 1);
    assert_eq!(Arc::strong_count(&kept), 3);
    // A neighbour that holds on to it keeps the GPU's context alive.
    let message = first.context.message(None);
    drop((first, again, other));
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(message);
    assert_eq!(Arc::strong_count(&kept), 1);
    // Wrapped anew.
    drop(sharing(0, kept.clone()));
    assert_eq!(Arc::strong_count(&kept), 1);
}

/// By the function that the other elements use.
fn neighbours_understand_our_contexts() {
    type Handle = unsafe extern "C" fn(
        *mut gst::ffi::GstElement,
        *mut gst::ffi::GstContext,
        c_int,
        *mut *mut gst::ffi::GstObject,
    ) -> glib::ffi::gboolean;
    // SAFETY: open already.
    let library = unsafe { Library::new("libgstcuda-1.0.so.0") }.unwrap();
    // SAFETY: as its header has it.
    let handle = unsafe { library.get::<Handle>(c"gst_cuda_handle_set_context") }.unwrap();
    let kept = Arc::new(());
    let ours = sharing(1, kept.clone());
    let message = ours.context.message(None);
    assert!(!message.is_persistent());
    assert!(Context::given(&message).unwrap() == ours.context);
    let neighbour = gst::Bin::new();
    for (device, expected) in [(-1, true), (1, true), (0, false)] {
        let mut slot = std::ptr::null_mut();
        // SAFETY: all of them are alive.
        unsafe {
            handle(
                neighbour.upcast_ref::<gst::Element>().to_glib_none().0,
                message.to_glib_none().0,
                device,
                &mut slot,
            );
            assert_eq!(slot == ours.context.as_ptr(), expected, "GPU {device}");
            if !slot.is_null() {
                glib::gobject_ffi::g_object_unref(slot.cast());
            }
        }
    }
    // What a context held before stays in it.
    let mut before = gst::Context::new(super::TYPE, true);
    before.make_mut().structure_mut().set("other", 3);
    let message = ours.context.message(Some(before));
    assert_eq!(message.structure().get::<i32>("other"), Ok(3));
    assert!(Context::given(&message).unwrap() == ours.context);
    drop((message, ours));
    drop(neighbour);
}

fn maps_are_of_one_frame() {
    let sharing = sharing(0, Arc::new(()));
    let caps = caps("NV12", 322, 242);
    let info = VideoInfo::from_caps(&caps).unwrap();
    let pool = pool(&sharing, &caps);
    let mut buffer = pool.acquire_buffer(None).unwrap();
    assert!(is_cuda(&buffer));
    {
        let buffer = buffer.get_mut().unwrap();
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, &info).unwrap();
        let stride = frame.plane_stride()[1] as usize;
        frame.plane_data_mut(1).unwrap()[3 * stride + 5] = 99;
    }
    // What the CPU wrote is there for the GPU.
    let mapped = sharing.map(buffer.clone()).unwrap();
    let read = layout(&info, &buffer, Some(mapped.planes()), mapped.size()).unwrap();
    let at = |y: usize, x: usize| read.offsets()[1] + y * read.strides()[1] + x;
    assert_eq!(read.strides()[..2], [512, 512]);
    assert_eq!(sharing.context_of(&mapped), PRIMARY);
    // SAFETY: the stand-in's device memory is main memory, mapped, and the layout is inside it.
    unsafe {
        assert_eq!(*(mapped.base() as *const u8).add(at(3, 5)), 99);
    }
    drop(mapped);
    assert!(Mapped::for_writing(buffer.clone()).is_err(), "held twice");
    // And the other way.
    let mapped = Mapped::for_writing(buffer).unwrap();
    // SAFETY: as above.
    unsafe { *(mapped.base() as *mut u8).add(at(4, 6)) = 55 };
    let buffer = mapped.into_buffer().unwrap();
    let frame = VideoFrameRef::from_buffer_ref_readable(&buffer, &info).unwrap();
    let stride = frame.plane_stride()[1] as usize;
    let plane = frame.plane_data(1).unwrap();
    assert_eq!((plane[3 * stride + 5], plane[4 * stride + 6]), (99, 55));
    drop(frame);
    drop(buffer);
    pool.set_active(false).unwrap();
}

/// Metas, and without them the memory's own layout, which differs from that of the caps.
fn every_format_lies_where_its_meta_says() {
    let sharing = sharing(0, Arc::new(()));
    for format in CUDA_FORMATS {
        for (width, height) in [(64, 48), (131, 77)] {
            let caps = caps(format.to_str(), width, height);
            let info = VideoInfo::from_caps(&caps).unwrap();
            let buffer = pool(&sharing, &caps).acquire_buffer(None).unwrap();
            let mapped = sharing.map(buffer.clone()).unwrap();
            let by_meta = layout(&info, &buffer, None, mapped.size()).unwrap();
            let meta = buffer.meta::<VideoMeta>().unwrap();
            assert_eq!(by_meta.strides()[0] as i32, meta.stride()[0]);
            let mut bare = buffer
                .copy_region(gst::BufferCopyFlags::MEMORY, ..)
                .unwrap();
            assert!(bare.make_mut().meta::<VideoMeta>().is_none());
            let planes = Some(mapped.planes());
            let by_memory = layout(&info, &bare, planes, mapped.size()).unwrap();
            assert_eq!(by_meta, by_memory, "{format}");
        }
    }
}

/// On a machine with two GPUs, as the stand-in says.
fn elements_say_what_is_missing() {
    crate::plugin_register_static().unwrap();
    let start = |backend: &str, device: i32| {
        let element = gst::ElementFactory::make("streamdiffusion")
            .property_from_str("backend", backend)
            .property("device-id", device)
            .build()
            .unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let started = element.set_state(gst::State::Paused);
        let stats = element.property::<gst::Structure>("stats");
        element.set_state(gst::State::Null).unwrap();
        element.set_bus(None);
        let error = bus.pop_filtered(&[gst::MessageType::Error]);
        match error.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => Err(error.error().to_string()),
            _ => {
                started.unwrap();
                Ok(stats)
            }
        }
    };
    let listed = match cfg!(feature = "tensorrt") {
        true => &["auto", "onnxruntime-cuda", "tensorrt"][..],
        false => &["auto", "onnxruntime-cuda"],
    };
    for backend in listed {
        let message = start(backend, 7).unwrap_err();
        for part in [
            "property device-id",
            "no GPU 7",
            "there are 2, numbers 0 to 1",
        ] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
    // The command is one that builds what is missing, for this GPU and these properties.
    let message = start("tensorrt", 1).unwrap_err();
    let parts: &[&str] = match cfg!(feature = "tensorrt") {
        true => &[
            "property backend: tensorrt cannot be had: no engine of unet is there: none has been built",
            "\"streamdiffusion build ",
            "models/demo --size 256x256\"",
            "build-engines=auto",
        ],
        false => &[
            "property backend",
            "built without TensorRT",
            "--features tensorrt",
        ],
    };
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    // Where ONNX Runtime could use GPUs, the stand-in would not do.
    if let Err(missing) = cuda_available() {
        let message = start("onnxruntime-cuda", 1).unwrap_err();
        assert!(message.contains("property backend"), "{message}");
        assert!(message.contains(&missing.to_string()), "{message}");
        let stats = start("auto", 1).unwrap();
        assert_eq!(stats.get::<&str>("device"), Ok("CPU"));
        let reason = stats.get::<&str>("backend-reason").unwrap();
        assert!(reason.contains(&missing.to_string()), "{reason}");
        assert!(reason.contains("nor TensorRT: "), "{reason}");
    }
}

fn pools_belong_to_a_context() {
    let (ours, other) = (sharing(0, Arc::new(())), sharing(1, Arc::new(())));
    let caps = caps("RGBA", 64, 64);
    let is_ours = |pool: &gst::BufferPool| memory::is_pool_of(ours.functions, pool, &ours.context);
    let size = (64 * 64 * 4, 2, 9);
    let (pool, _) = ours.pool(None, &caps, size).unwrap();
    assert!(is_ours(&pool));
    let (same, _) = ours.pool(Some(pool.clone()), &caps, size).unwrap();
    assert_eq!(same, pool);
    let (_, _, min, max) = pool.config().params().unwrap();
    assert_eq!((min, max), (2, 9));
    assert!(
        pool.config()
            .has_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META)
    );
    // As the base class goes on from there.
    let mut config = pool.config();
    config.set_params(Some(&caps), pool.config().params().unwrap().1, 2, 9);
    config.set_allocator(
        None::<&gst::Allocator>,
        Some(&gst::AllocationParams::default()),
    );
    pool.set_config(config).unwrap();
    pool.set_active(true).unwrap();
    assert!(is_cuda(&pool.acquire_buffer(None).unwrap()));
    pool.set_active(false).unwrap();
    let (foreign, _) = other.pool(None, &caps, size).unwrap();
    let system = gst_video::VideoBufferPool::new().upcast();
    for pool in [foreign, system] {
        assert!(!is_ours(&pool));
        let (instead, _) = ours.pool(Some(pool), &caps, size).unwrap();
        assert!(is_ours(&instead));
    }
    // The library would end the process.
    let others = FORMATS
        .iter()
        .filter(|format| !CUDA_FORMATS.contains(format));
    for format in others {
        let refused = ours.pool(None, &self::caps(format.to_str(), 64, 64), size);
        let message = refused.err().unwrap().to_string();
        assert!(message.contains(format.to_str().as_str()), "{message}");
    }
    let refused = ours.pool(None, &gst::Caps::new_empty_simple("audio/x-raw"), size);
    assert!(refused.is_err());
}
