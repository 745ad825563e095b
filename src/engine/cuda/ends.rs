//! The texts between which frames are on their way, in device memory.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::device::HostTensor;
use crate::device::cuda::{Cuda, CudaTensor, Element, Interpolated};
use crate::engine::{Blend, Part, Text};
use crate::error::Result;

/// Tensors that are kept: two ends of prompt and negative prompt, with pooled embeddings, for two elements.
const KEPT: usize = 16;

/// The ends of ways, each uploaded once, as f32. Those of texts that nobody has any more go when the next one is looked for.
#[derive(Default)]
pub struct Ends {
    /// The one used last at the back.
    known: Mutex<Vec<End>>,
}

struct End {
    /// While this is here no other text has its address, whether or not there is still a text.
    text: Weak<Text<HostTensor>>,
    part: Part,
    tensor: CudaTensor,
}

impl Ends {
    /// How `blend` is written to `out`, with its ends in device memory.
    pub fn of(&self, cuda: &Cuda, blend: &Blend, out: &CudaTensor) -> Result<Interpolated> {
        let between = blend.between();
        let end = |text| self.end(cuda, text, blend);
        Ok(Interpolated {
            from: end(&between.from)?,
            to: end(&between.to)?,
            share: between.share,
            how: between.interpolation,
            out: out.clone(),
        })
    }

    /// The part of `text` that `blend` is of.
    fn end(&self, cuda: &Cuda, text: &Arc<Text<HostTensor>>, blend: &Blend) -> Result<CudaTensor> {
        let part = blend.part();
        let is_it = |end: &End| end.part == part && end.text.as_ptr() == Arc::as_ptr(text);
        let (known, gone) = {
            let mut all = self.known.lock();
            let alive = |end: &End| end.text.strong_count() > 0;
            let (mut left, gone): (Vec<_>, Vec<_>) = all.drain(..).partition(alive);
            let known = left.iter().position(is_it).map(|index| {
                let end = left.remove(index);
                let tensor = end.tensor.clone();
                left.push(end);
                tensor
            });
            *all = left;
            (known, gone)
        };
        // Nobody waits while memory is given back, or had.
        drop(gone);
        if let Some(tensor) = known {
            return Ok(tensor);
        }
        let values = blend.same_part_of(text);
        let tensor = cuda.upload_as(values.shape(), values.data(), Element::F32)?;
        let end = End {
            text: Arc::downgrade(text),
            part,
            tensor: tensor.clone(),
        };
        let oldest = {
            let mut all = self.known.lock();
            let oldest = (all.len() >= KEPT).then(|| all.remove(0));
            all.push(end);
            oldest
        };
        drop(oldest);
        Ok(tensor)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::computing::{self, When};
    use crate::device::Interpolation;
    use crate::engine::{Between, Numbers, Wording};

    fn text(x: f32) -> Arc<Text<HostTensor>> {
        Arc::new(Text {
            embedding: HostTensor::new(&[1, 1, 2], vec![x, -x]),
            pooled: Some(HostTensor::new(&[1, 3], vec![2.0 * x; 3])),
        })
    }

    fn blend(ends: [&Arc<Text<HostTensor>>; 2], part: Part) -> Blend {
        let between = Between::new(ends.map(Arc::clone), 0.5, Interpolation::Linear);
        match Wording::Between(Arc::new(between)).part(part) {
            Some(Numbers::Blend(blend)) => blend,
            other => panic!("{other:?}"),
        }
    }

    /// Each is uploaded once for all frames on a way, goes with its text, and makes room for others where many are in use.
    #[test]
    fn ends_are_kept_while_their_texts_are_in_use() {
        let name = "engine::cuda::ends::tests::ends_are_kept_while_their_texts_are_in_use";
        computing::run(name, &[], &[When::Late], || {
            let cuda = Cuda::new(0).unwrap();
            let ends = Ends::default();
            let kept = || ends.known.lock().len();
            let both = |texts: [&Arc<Text<HostTensor>>; 2], part| {
                let out = cuda.empty(&[6], Element::F16).unwrap();
                let found = ends.of(&cuda, &blend(texts, part), &out).unwrap();
                [found.from, found.to]
            };
            let (a, b) = (text(1.0), text(2.0));
            let first = both([&a, &b], Part::Embedding);
            let values = first
                .clone()
                .map(|end| cuda.download(&end).unwrap().into_data());
            assert_eq!(values, [[1.0, -1.0], [2.0, -2.0]]);
            let pooled = both([&a, &b], Part::Pooled);
            assert_eq!(cuda.download(&pooled[1]).unwrap().data(), [4.0; 3]);
            assert_eq!(kept(), 4);
            // The way back has the same ends, the other way round.
            let back = both([&b, &a], Part::Embedding);
            let at = |ends: &[CudaTensor; 2]| ends.each_ref().map(CudaTensor::pointer);
            assert_eq!(at(&back), [at(&first)[1], at(&first)[0]]);
            assert_eq!(kept(), 4);

            // A text that is gone takes its tensors along, and what has its place in memory is another one.
            drop((b, back, pooled));
            for x in 3..200 {
                let other = text(x as f32);
                let [_, to] = both([&a, &other], Part::Embedding);
                assert_eq!(cuda.download(&to).unwrap().data()[0], x as f32);
                assert!(kept() <= 4, "{} kept", kept());
            }
            let allocated = cuda.allocated();
            // Of more than there is room for, those used last stay.
            let many: Vec<_> = (0..KEPT + 5).map(|x| text(x as f32)).collect();
            for to in &many {
                both([&a, to], Part::Embedding);
                assert!(kept() <= KEPT);
            }
            assert_eq!(kept(), KEPT);
            let known = |of: &Arc<Text<HostTensor>>| {
                let known = ends.known.lock();
                known.iter().any(|end| end.text.as_ptr() == Arc::as_ptr(of))
            };
            assert!(known(&a) && known(&many[KEPT]) && !known(&many[0]));
            drop(many);
            both([&a, &text(7.0)], Part::Embedding);
            assert!(kept() <= 4, "{} kept", kept());
            assert!(cuda.allocated() <= allocated + 512 * (KEPT + 2));
        });
    }
}
