//! The parameters of the kernels between video frames and tensors (`kernels/frame_to_tensor.cu`,
//! `kernels/tensor_to_frame.cu`, and `kernels/resample.cuh` for how they resize).

mod axis;
mod memory;
mod to_frame;
mod to_tensor;

pub use to_frame::{TensorToFrame, TensorToFrameArguments};
pub use to_tensor::{FrameToTensor, FrameToTensorArguments};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::video::{Colour, MAX_SIDE, PixelFormat, VideoLayout};

    #[test]
    fn sides_that_are_out_of_range_are_errors() {
        let layout = VideoLayout::dense(PixelFormat::P010, 4, 4).unwrap();
        for side in [0, MAX_SIDE + 1] {
            let message = FrameToTensor::new(&layout, Colour::default(), (side, 4))
                .unwrap_err()
                .to_string();
            assert!(message.contains("expected 1 to 32768"), "{message}");
            assert!(TensorToFrame::new((4, side), &layout, Colour::default()).is_err());
        }
        let plan = FrameToTensor::new(&layout, Colour::default(), (4, 4)).unwrap();
        assert!(plan.arguments(0x1001, 0x2000).is_err());
        assert!(plan.arguments(0x1002, 0x2000).is_ok());
    }
}
