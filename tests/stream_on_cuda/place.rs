//! Where a stream runs: on the host, and on a CUDA device.

use std::sync::Arc;

use gststreamdiffusion::device::cuda::{Cuda, CudaTensor, Download, Upload};
use gststreamdiffusion::device::video::{Colour, PixelFormat, VideoLayout};
use gststreamdiffusion::device::{Device, Host, HostTensor};
use gststreamdiffusion::engine::Model;
use gststreamdiffusion::engine::cuda::CudaModel;
use gststreamdiffusion::engine::onnxruntime::OnnxModel;

/// Width and height of frames, which are red, green and blue bytes, and of the pictures that they become.
pub const SIZE: (usize, usize) = (48, 32);

/// A device with a model on it, and the ways of a frame in and out, as the element has them.
pub trait Place {
    type Device: Device;
    type Model: Model<Tensor = <Self::Device as Device>::Tensor>;
    /// A frame on its way in.
    type Coming;
    /// A frame on its way out.
    type Going;

    fn device(&self) -> Self::Device;
    fn model(&self) -> Arc<Self::Model>;
    /// Begins to take in a frame, which may be overwritten from then on.
    fn begin(&self, frame: &[u8]) -> Self::Coming;
    fn picture(&self, coming: Self::Coming) -> <Self::Device as Device>::Tensor;
    /// Begins to hand out a picture.
    fn show(&self, picture: &<Self::Device as Device>::Tensor) -> Self::Going;
    fn frame(&self, going: Self::Going) -> Vec<u8>;
}

/// The host. Bytes are codes of numbers in [-1, 1].
pub struct OnHost(pub Arc<OnnxModel>);

impl Place for OnHost {
    type Device = Host;
    type Model = OnnxModel;
    type Coming = HostTensor;
    type Going = Vec<u8>;

    fn device(&self) -> Host {
        Host
    }

    fn model(&self) -> Arc<OnnxModel> {
        self.0.clone()
    }

    fn begin(&self, frame: &[u8]) -> HostTensor {
        let (width, height) = SIZE;
        let channel = |c| frame.iter().skip(c).step_by(3);
        let data = (0..3).flat_map(channel);
        let data = data.map(|code| f32::from(*code) / 127.5 - 1.0).collect();
        HostTensor::new(&[1, 3, height, width], data)
    }

    fn picture(&self, coming: HostTensor) -> HostTensor {
        coming
    }

    fn show(&self, picture: &HostTensor) -> Vec<u8> {
        let pixels = SIZE.0 * SIZE.1;
        let code = |i: usize| (picture.data()[i % 3 * pixels + i / 3] + 1.0) * 127.5;
        let code = |i| code(i).round().clamp(0.0, 255.0) as u8;
        (0..3 * pixels).map(code).collect()
    }

    fn frame(&self, going: Vec<u8>) -> Vec<u8> {
        going
    }
}

/// A CUDA device. Frames come and go beside what is computed.
pub struct OnCuda(pub Cuda, pub Arc<CudaModel>);

impl OnCuda {
    fn layout() -> VideoLayout {
        VideoLayout::dense(PixelFormat::Rgb, SIZE.0, SIZE.1).unwrap()
    }
}

impl Place for OnCuda {
    type Device = Cuda;
    type Model = CudaModel;
    type Coming = Upload;
    type Going = Download;

    fn device(&self) -> Cuda {
        self.0.clone()
    }

    fn model(&self) -> Arc<CudaModel> {
        self.1.clone()
    }

    fn begin(&self, frame: &[u8]) -> Upload {
        self.0.upload_frame(frame, &Self::layout()).unwrap()
    }

    fn picture(&self, coming: Upload) -> CudaTensor {
        (self.0.import_upload(coming, Colour::FULL_RGB, SIZE)).unwrap()
    }

    fn show(&self, picture: &CudaTensor) -> Download {
        (self
            .0
            .download_frame(picture, &Self::layout(), Colour::FULL_RGB))
        .unwrap()
    }

    fn frame(&self, going: Download) -> Vec<u8> {
        let mut frame = vec![0; Self::layout().size()];
        going.finish(&mut frame).unwrap();
        frame
    }
}
