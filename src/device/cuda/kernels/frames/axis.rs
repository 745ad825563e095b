//! How one axis of a picture is resized: `Axis` in `kernels/resample.cuh`.

/// Output sample `o` covers `[o·num + shift, (o + 1)·num + shift) / den` of `size` input samples. Sides are 32768 pixels at
/// most, so all of the kernels' products fit into 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(super) struct Axis {
    num: u32,
    den: u32,
    shift: u32,
    size: u32,
    /// `num / den`, for the kernels to go from sample to sample without a division.
    whole: u32,
    /// `num % den`.
    part: u32,
}

impl Axis {
    /// From `from` pixels, of which a sample is for `1 << sub`, to `to` pixels. Samples lie in the middle of the pixels that
    /// they are for, or `on` the first of two.
    pub(super) fn new(from: u32, to: u32, sub: u32, on: bool) -> Self {
        let (num, den, shift) = match on && sub > 0 {
            false => (from, to << sub, 0),
            // Of two pixels: a quarter of a sample.
            true => (2 * from, 4 * to, to),
        };
        Self {
            num,
            den,
            shift,
            size: from.div_ceil(1 << sub),
            whole: num / den,
            part: num % den,
        }
    }

    /// Whether there are more output samples than input samples, so that each is made of four.
    pub(super) fn grows(&self) -> bool {
        self.num < self.den
    }

    /// The first and the last sample that outputs `begin` to `end` (not included) need, as the kernels work it out.
    pub(super) fn span(&self, begin: u32, end: u32) -> (u32, u32) {
        let [num, den, shift] = [self.num, self.den, self.shift].map(i64::from);
        let taps = |o: u32| {
            let o = i64::from(o);
            if self.grows() {
                let before = ((2 * o + 1) * num + 2 * shift - den).div_euclid(2 * den);
                (before - 1, before + 2)
            } else {
                ((o * num + shift) / den, ((o + 1) * num + shift - 1) / den)
            }
        };
        let inside = |sample: i64| sample.clamp(0, i64::from(self.size) - 1) as u32;
        (inside(taps(begin).0), inside(taps(end - 1).1))
    }
}
