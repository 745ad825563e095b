//! Between rows of 8-bit RGB and planes of f32.

use super::HostTensor;

/// `[1, 3, height, width]` in [-1, 1] of `height` rows of RGB, each `stride` bytes after the last.
///
/// `rgb` holds at least `stride·(height − 1) + 3·width` bytes.
pub fn to_tensor(rgb: &[u8], stride: usize, width: usize, height: usize) -> HostTensor {
    let level: [f32; 256] = std::array::from_fn(|value| value as f32 / 255.0 * 2.0 - 1.0);
    let plane = width * height;
    let mut data = vec![0.0; 3 * plane];
    let (red, rest) = data.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let rows = red
        .chunks_mut(width)
        .zip(green.chunks_mut(width))
        .zip(blue.chunks_mut(width));
    for (((red, green), blue), row) in rows.zip(rgb.chunks(stride)) {
        let samples = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in samples.zip(row.chunks_exact(3)) {
            *red = level[pixel[0] as usize];
            *green = level[pixel[1] as usize];
            *blue = level[pixel[2] as usize];
        }
    }
    HostTensor::new(&[1, 3, height, width], data)
}

/// Writes a picture `[1, 3, height, width]` as rows of RGB, each `stride` bytes after the last; values are clamped to
/// [-1, 1] and rounded to the nearest level.
pub fn from_tensor(picture: &HostTensor, rgb: &mut [u8], stride: usize) {
    let &[_, _, height, width] = picture.shape() else {
        return;
    };
    let (red, rest) = picture.data().split_at(width * height);
    let (green, blue) = rest.split_at(width * height);
    let rows = red
        .chunks(width)
        .zip(green.chunks(width))
        .zip(blue.chunks(width));
    let level = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    for (((red, green), blue), row) in rows.zip(rgb.chunks_mut(stride)) {
        let samples = red.iter().zip(green).zip(blue);
        for (((red, green), blue), pixel) in samples.zip(row.chunks_exact_mut(3)) {
            pixel[0] = level(*red);
            pixel[1] = level(*green);
            pixel[2] = level(*blue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_survives_the_round_trip_at_any_stride() {
        let (width, height, stride) = (43, 2, 132);
        let mut rgb = vec![7u8; stride * height];
        for (row, chunk) in rgb.chunks_mut(stride).enumerate() {
            for (i, value) in chunk[..3 * width].iter_mut().enumerate() {
                *value = (row * 127 + i) as u8;
            }
        }
        let tensor = to_tensor(&rgb, stride, width, height);
        assert_eq!(tensor.shape(), [1, 3, height, width]);
        // The green plane's second row, first pixel.
        assert_eq!(
            tensor.data()[width * height + width],
            128.0 / 255.0 * 2.0 - 1.0
        );
        let mut back = vec![7u8; stride * height];
        from_tensor(&tensor, &mut back, stride);
        assert_eq!(back, rgb);
    }

    #[test]
    fn values_are_clamped_and_rounded() {
        let picture = HostTensor::new(&[1, 3, 1, 1], vec![-3.0, 0.0, f32::NAN]);
        let mut rgb = [9; 3];
        from_tensor(&picture, &mut rgb, 3);
        assert_eq!(rgb, [0, 128, 0]);
    }
}
