//! The host device: f32 in main memory, plain loops that the compiler vectorises.

pub mod arc;
pub mod pixels;
mod tensor;

pub use tensor::HostTensor;

use std::time::{Duration, Instant};

use super::{Device, Update, apart, unlike};
use crate::error::{Error, Result};

/// Tensors in main memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Device for Host {
    type Tensor = HostTensor;
    type Comparison = f32;

    fn upload(&self, shape: &[usize], data: &[f32]) -> Result<HostTensor> {
        Ok(HostTensor::new(shape, data.to_vec()))
    }

    fn stack(&self, mut parts: Vec<HostTensor>) -> Result<HostTensor> {
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut shape = parts.first().map_or(vec![0], |part| part.shape().to_vec());
        shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
        let data = parts.into_iter().flat_map(HostTensor::into_data).collect();
        Ok(HostTensor::new(&shape, data))
    }

    fn unstack(&self, tensor: HostTensor) -> Vec<HostTensor> {
        let mut shape = tensor.shape().to_vec();
        let rows = std::mem::replace(&mut shape[0], 1);
        if rows == 1 {
            return vec![tensor];
        }
        let len = tensor.data().len() / rows.max(1);
        tensor
            .data()
            .chunks(len.max(1))
            .map(|row| HostTensor::new(&shape, row.to_vec()))
            .collect()
    }

    fn same_shape(&self, a: &HostTensor, b: &HostTensor) -> bool {
        a.shape() == b.shape()
    }

    fn compare(&self, a: &HostTensor, b: &HostTensor) -> Result<f32> {
        // f64 sums: a Full HD frame has 6 million terms, where f32 accumulation loses the digits the filter reads.
        let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
        for (x, y) in a.data().chunks(1024).zip(b.data().chunks(1024)) {
            let (mut p, mut q, mut r) = ([0f32; 8], [0f32; 8], [0f32; 8]);
            for (x, y) in x.chunks(8).zip(y.chunks(8)) {
                for (i, (x, y)) in x.iter().zip(y).enumerate() {
                    p[i] += x * y;
                    q[i] += x * x;
                    r[i] += y * y;
                }
            }
            let sum = |v: [f32; 8]| v.iter().map(|x| f64::from(*x)).sum::<f64>();
            ab += sum(p);
            aa += sum(q);
            bb += sum(r);
        }
        if aa == 0.0 && bb == 0.0 {
            return Ok(1.0);
        }
        Ok((ab / (aa * bb).sqrt().max(1e-12)) as f32)
    }

    fn cosine(&self, comparison: f32) -> Result<f32> {
        Ok(comparison)
    }

    fn add_noise(
        &self,
        a: f32,
        latents: &HostTensor,
        b: f32,
        noise: &HostTensor,
    ) -> Result<HostTensor> {
        let mut out = latents.clone();
        for frame in out.data_mut().chunks_mut(noise.data().len()) {
            for (x, e) in frame.iter_mut().zip(noise.data()) {
                *x = a * *x + b * e;
            }
        }
        Ok(out)
    }

    fn slerp(&self, share: f64, a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
        if a.shape() != b.shape() {
            return Err(apart(a.shape(), b.shape()));
        }
        Ok(HostTensor::new(
            a.shape(),
            arc::slerp(a.data(), b.data(), share),
        ))
    }

    fn step(&self, updates: Vec<Update<'_, HostTensor>>) -> Result<()> {
        updates.into_iter().try_for_each(update)
    }

    fn blend(&self, shares: &[f32], over: &HostTensor, under: &HostTensor) -> Result<HostTensor> {
        let mut out = over.clone();
        let rows = over.shape().first().copied().unwrap_or(0);
        if under.shape() != over.shape() || shares.len() != rows {
            return Err(unlike(over.shape(), under.shape(), shares.len()));
        }
        let len = (under.data().len() / rows.max(1)).max(1);
        let pairs = out.data_mut().chunks_mut(len).zip(under.data().chunks(len));
        for ((over, under), share) in pairs.zip(shares) {
            for (x, y) in over.iter_mut().zip(under) {
                *x = share * shown(*x) + (1.0 - share) * y;
            }
        }
        Ok(out)
    }

    fn timed<R>(&self, _: usize, work: impl FnOnce() -> R) -> (R, Option<Duration>) {
        let start = Instant::now();
        let result = work();
        (result, Some(start.elapsed()))
    }
}

/// A value of a picture as it is shown: in [-1, 1], and -1 if it is no number.
fn shown(value: f32) -> f32 {
    match value > -1.0 {
        true => value.min(1.0),
        false => -1.0,
    }
}

/// The fused step on one slot.
fn update(update: Update<'_, HostTensor>) -> Result<()> {
    let Update {
        k,
        x,
        prediction,
        reference,
        noise,
    } = update;
    let same = |t: &HostTensor| t.data().len() == x.data().len();
    if !same(prediction) || !reference.is_none_or(same) {
        return Err(Error::engine(
            "unet",
            "its output has another shape than its sample",
        ));
    }
    for (x, m) in x.data_mut().iter_mut().zip(prediction.data()) {
        *x = k.sample * *x + k.prediction * m;
    }
    if let Some(reference) = reference {
        for (x, r) in x.data_mut().iter_mut().zip(reference.data()) {
            *x += k.reference * r;
        }
    }
    if let Some(noise) = noise {
        for frame in x.data_mut().chunks_mut(noise.data().len()) {
            for (x, e) in frame.iter_mut().zip(noise.data()) {
                *x += k.noise * e;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_blended_each_by_its_share() {
        let over = [2.0, -0.5, f32::NAN, 0.5, -3.0, 1.0];
        let over = Host.upload(&[3, 2], &over).unwrap();
        let under = Host
            .upload(&[3, 2], &[0.0, 0.5, 1.0, -1.0, 0.25, 0.75])
            .unwrap();
        let blended = Host.blend(&[0.5, 0.25, 0.0], &over, &under).unwrap();
        assert_eq!(blended.data(), [0.5, 0.0, 0.5, -0.625, 0.25, 0.75]);
        assert!(Host.blend(&[0.5], &over, &under).is_err());
        let other = Host.upload(&[2, 3], under.data()).unwrap();
        assert!(Host.blend(&[0.5; 3], &over, &other).is_err());
    }

    #[test]
    fn frames_have_one_noise_map_or_one_each() {
        let latents = Host.upload(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let one = Host.upload(&[1, 1, 1, 2], &[10.0, 20.0]).unwrap();
        let each = Host
            .upload(&[2, 1, 1, 2], &[10.0, 20.0, 30.0, 40.0])
            .unwrap();
        let noised = |noise| {
            let noised = Host.add_noise(2.0, &latents, 0.5, noise);
            noised.unwrap().into_data()
        };
        assert_eq!(noised(&one), [7.0, 14.0, 11.0, 18.0]);
        assert_eq!(noised(&each), [7.0, 14.0, 21.0, 28.0]);
    }
}
