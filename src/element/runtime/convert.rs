//! Between video frames of any format and size and the pictures the stream works on, by libgstvideo's converter.

use gst_video::{VideoFormat, VideoFrameRef, VideoInfo};

use crate::device::HostTensor;
use crate::device::host::pixels;

type Error = gst::glib::BoolError;

/// Conversion of input frames to pictures.
pub struct Importer {
    conversion: Conversion,
    frame: VideoInfo,
    rgb: Rgb,
}

/// Conversion of pictures to output frames.
pub struct Exporter {
    conversion: Conversion,
    frame: VideoInfo,
    rgb: Rgb,
}

/// Conversion of input frames to output frames.
pub struct Passage {
    converter: gst_video::VideoConverter,
    input: VideoInfo,
    output: VideoInfo,
}

impl Passage {
    /// From frames of `input` to frames of `output`.
    pub fn new(input: &VideoInfo, output: &VideoInfo) -> Result<Self, Error> {
        // Frames are converted one by one, whatever their rate.
        let mut caps = output.to_caps()?;
        caps.make_mut().set("framerate", input.fps());
        let output = VideoInfo::from_caps(&caps)?;
        Ok(Self {
            converter: gst_video::VideoConverter::new(input, &output, None)?,
            input: input.clone(),
            output,
        })
    }

    /// Writes the frame in `input` into `output`, honouring their video metas.
    pub fn convert(
        &mut self,
        input: &gst::BufferRef,
        output: &mut gst::BufferRef,
    ) -> Result<(), Error> {
        let input = VideoFrameRef::from_buffer_ref_readable(input, &self.input)?;
        let mut output = VideoFrameRef::from_buffer_ref_writable(output, &self.output)?;
        self.converter.frame_ref(&input, &mut output);
        Ok(())
    }
}

/// One frame of 8-bit RGB at processing size, the form between video and tensor.
struct Rgb {
    info: VideoInfo,
    buffer: gst::Buffer,
}

impl Rgb {
    /// Room for a frame of this size with the colours of `like`, which the converter must not touch.
    fn new((width, height): (usize, usize), like: &VideoInfo) -> Result<Self, Error> {
        let side = |side| u32::try_from(side).map_err(|_| gst::glib::bool_error!("too large"));
        let info = VideoInfo::builder(VideoFormat::Rgb, side(width)?, side(height)?)
            .fps(like.fps())
            .colorimetry(&gst_video::VideoColorimetry::new(
                gst_video::VideoColorRange::Range0_255,
                gst_video::VideoColorMatrix::Rgb,
                like.colorimetry().transfer(),
                like.colorimetry().primaries(),
            ))
            .build()?;
        let buffer = gst::Buffer::with_size(info.size())?;
        Ok(Self { info, buffer })
    }

    fn stride(&self) -> usize {
        self.info.stride()[0] as usize
    }
}

/// A conversion by libgstvideo: of size, format and colours at once, or by way of a frame between.
struct Conversion {
    first: gst_video::VideoConverter,
    second: Option<(Rgb, gst_video::VideoConverter)>,
}

impl Conversion {
    /// From frames of `from` to frames of `to`, one of which is 8-bit RGB.
    ///
    /// libgstvideo 1.22 leaves memory that nobody has written in pictures of more than 8 bits that it makes larger along
    /// one side and smaller along the other. So it is 8-bit RGB that is scaled: at the size of `from` if that one has more
    /// bits, else at that of `to`.
    fn new(from: &VideoInfo, to: &VideoInfo) -> Result<Self, Error> {
        let deep = |info: &VideoInfo| info.format_info().depth().iter().any(|bits| *bits > 8);
        let size = |info: &VideoInfo| (info.width() as usize, info.height() as usize);
        let between = match (size(from) != size(to), deep(from), deep(to)) {
            (true, true, _) => Rgb::new(size(from), from)?,
            (true, false, true) => Rgb::new(size(to), to)?,
            _ => {
                return Ok(Self {
                    first: gst_video::VideoConverter::new(from, to, None)?,
                    second: None,
                });
            }
        };
        Ok(Self {
            first: gst_video::VideoConverter::new(from, &between.info, None)?,
            second: {
                let second = gst_video::VideoConverter::new(&between.info, to, None)?;
                Some((between, second))
            },
        })
    }

    fn run(
        &mut self,
        from: &VideoFrameRef<&gst::BufferRef>,
        to: &mut VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<(), Error> {
        let Some((between, second)) = &mut self.second else {
            self.first.frame_ref(from, to);
            return Ok(());
        };
        let (info, buffer) = (&between.info, &mut between.buffer);
        let mut rgb = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), info)?;
        self.first.frame_ref(from, &mut rgb);
        drop(rgb);
        let rgb = VideoFrameRef::from_buffer_ref_readable(buffer, info)?;
        second.frame_ref(&rgb, to);
        Ok(())
    }
}

impl Importer {
    /// From frames of `frame` to pictures of `size` (width, height).
    pub fn new(frame: &VideoInfo, size: (usize, usize)) -> Result<Self, Error> {
        let rgb = Rgb::new(size, frame)?;
        Ok(Self {
            conversion: Conversion::new(frame, &rgb.info)?,
            frame: frame.clone(),
            rgb,
        })
    }

    /// The picture `[1, 3, H, W]` of a frame. Strides and offsets are taken from its video meta.
    pub fn import(&mut self, buffer: &gst::BufferRef) -> Result<HostTensor, Error> {
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, &self.frame)?;
        let (width, height) = (self.rgb.info.width(), self.rgb.info.height());
        let stride = self.rgb.stride();
        let mut picture =
            VideoFrameRef::from_buffer_ref_writable(self.rgb.buffer.make_mut(), &self.rgb.info)?;
        self.conversion.run(&frame, &mut picture)?;
        let rgb = picture.plane_data(0)?;
        Ok(pixels::to_tensor(
            rgb,
            stride,
            width as usize,
            height as usize,
        ))
    }
}

impl Exporter {
    /// From pictures of `size` (width, height) to frames of `frame`.
    pub fn new(size: (usize, usize), frame: &VideoInfo) -> Result<Self, Error> {
        let rgb = Rgb::new(size, frame)?;
        Ok(Self {
            conversion: Conversion::new(&rgb.info, frame)?,
            frame: frame.clone(),
            rgb,
        })
    }

    /// Writes `picture` `[1, 3, H, W]` into `buffer`, honouring its video meta.
    pub fn export(
        &mut self,
        picture: &HostTensor,
        buffer: &mut gst::BufferRef,
    ) -> Result<(), Error> {
        let stride = self.rgb.stride();
        let (width, height) = (self.rgb.info.width(), self.rgb.info.height());
        if picture.shape() != [1, 3, height as usize, width as usize] {
            return Err(gst::glib::bool_error!(
                "a picture of shape {:?}, expected {width}x{height}",
                picture.shape()
            ));
        }
        {
            let mut rgb = self.rgb.buffer.make_mut().map_writable()?;
            pixels::from_tensor(picture, &mut rgb, stride);
        }
        let rgb = VideoFrameRef::from_buffer_ref_readable(&self.rgb.buffer, &self.rgb.info)?;
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, &self.frame)?;
        self.conversion.run(&rgb, &mut frame)
    }
}
