//! What rows of a U-Net call are conditioned on: encoded texts, and what lies between two.

use std::sync::{Arc, OnceLock};

use crate::device::{HostTensor, Interpolation};

/// An encoded text.
#[derive(Debug, Clone)]
pub struct Text<T> {
    /// Embedding `[1, L, D]`, L being whole chunks of the text encoder's length.
    pub embedding: T,
    /// Pooled embedding `[1, P]`, where the U-Net wants one.
    pub pooled: Option<T>,
}

/// A tensor of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// The pooled embedding.
    Pooled,
}

impl<T> Text<T> {
    /// A tensor of it, if it has that.
    pub fn part(&self, part: Part) -> Option<&T> {
        match part {
            Part::Embedding => Some(&self.embedding),
            Part::Pooled => self.pooled.as_ref(),
        }
    }
}

impl Text<HostTensor> {
    /// The text at `share` (0…1) of the way from `a` to `b`, which have one shape. Tokens are blended each by itself, as
    /// their lengths differ much: the start token's would rule the angle between whole texts.
    pub fn between(a: &Self, b: &Self, share: f64, how: Interpolation) -> Self {
        Self {
            embedding: how.between(&a.embedding, &b.embedding, share),
            pooled: match (&a.pooled, &b.pooled) {
                (Some(a), Some(b)) => Some(how.between(a, b, share)),
                (pooled, _) => pooled.clone(),
            },
        }
    }
}

/// A text on the way from one to another, which have one shape. It is blended on the host when that is asked for; a device
/// may blend it by itself.
#[derive(Debug)]
pub struct Between {
    /// Where the way begins.
    pub from: Arc<Text<HostTensor>>,
    /// Where it ends.
    pub to: Arc<Text<HostTensor>>,
    /// How much of the way is gone: 0…1.
    pub share: f64,
    /// How tokens are blended.
    pub interpolation: Interpolation,
    blended: OnceLock<Arc<Text<HostTensor>>>,
}

impl Between {
    /// It, not blended yet.
    pub fn new(
        [from, to]: [Arc<Text<HostTensor>>; 2],
        share: f64,
        interpolation: Interpolation,
    ) -> Self {
        Self {
            from,
            to,
            share,
            interpolation,
            blended: OnceLock::new(),
        }
    }

    /// Whether it has been blended in main memory.
    pub fn is_blended(&self) -> bool {
        self.blended.get().is_some()
    }

    /// The text itself, which is blended once.
    pub fn text(&self) -> &Arc<Text<HostTensor>> {
        let blend = || Text::between(&self.from, &self.to, self.share, self.interpolation);
        self.blended.get_or_init(|| Arc::new(blend()))
    }
}

/// What rows are conditioned on.
#[derive(Debug, Clone)]
pub enum Wording {
    /// A text.
    Text(Arc<Text<HostTensor>>),
    /// What lies between two texts.
    Between(Arc<Between>),
}

impl Wording {
    /// The text, blended if it has to be.
    pub fn text(&self) -> &Arc<Text<HostTensor>> {
        match self {
            Self::Text(text) => text,
            Self::Between(between) => between.text(),
        }
    }

    /// The length of the text, in tokens.
    pub fn tokens(&self) -> usize {
        let text = match self {
            Self::Text(text) => text,
            Self::Between(between) => &between.from,
        };
        text.embedding.shape().get(1).copied().unwrap_or(0)
    }

    /// Whether it is the very same as `other`.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Arc::ptr_eq(a, b),
            (Self::Between(a), Self::Between(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The numbers of a part of it, if it has that.
    pub fn part(&self, part: Part) -> Option<Numbers> {
        match self {
            Self::Text(text) => text.part(part).cloned().map(Numbers::Plain),
            Self::Between(between) => match (between.from.part(part), between.to.part(part)) {
                (Some(_), Some(_)) => Some(Numbers::Blend(Blend {
                    between: between.clone(),
                    part,
                })),
                (only, _) => only.cloned().map(Numbers::Plain),
            },
        }
    }
}

impl From<Arc<Text<HostTensor>>> for Wording {
    fn from(text: Arc<Text<HostTensor>>) -> Self {
        Self::Text(text)
    }
}

impl From<Text<HostTensor>> for Wording {
    fn from(text: Text<HostTensor>) -> Self {
        Self::Text(Arc::new(text))
    }
}

/// A tensor of a text that lies between two, both of which have it.
#[derive(Debug, Clone)]
pub struct Blend {
    between: Arc<Between>,
    part: Part,
}

impl Blend {
    /// The same part of another text, which must have it: one of the two that it lies between.
    pub fn same_part_of<'a>(&self, text: &'a Text<HostTensor>) -> &'a HostTensor {
        // It is only made of parts that there are.
        text.part(self.part).unwrap_or(&text.embedding)
    }

    /// The text that it is a part of.
    pub fn between(&self) -> &Between {
        &self.between
    }

    /// Which part.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.same_part_of(&self.between.from).shape()
    }
}

/// What a row is given for an input.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// These.
    Plain(HostTensor),
    /// What lies between others, which a device may work out.
    Blend(Blend),
}

impl Numbers {
    /// Their dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Plain(tensor) => tensor.shape(),
            Self::Blend(blend) => blend.shape(),
        }
    }

    /// Whether they are known to be the same as `other`, without blending anything.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain(a), Self::Plain(b)) => a == b,
            (Self::Blend(a), Self::Blend(b)) => {
                Arc::ptr_eq(&a.between, &b.between) && a.part == b.part
            }
            _ => false,
        }
    }

    /// Them in main memory, blended if they have to be.
    pub fn tensor(&self) -> &HostTensor {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Blend(blend) => blend.same_part_of(blend.between.text()),
        }
    }

    /// The same, taken out.
    pub fn into_tensor(self) -> HostTensor {
        match self {
            Self::Plain(tensor) => tensor,
            blend => blend.tensor().clone(),
        }
    }
}

impl From<HostTensor> for Numbers {
    fn from(tensor: HostTensor) -> Self {
        Self::Plain(tensor)
    }
}

impl From<Numbers> for HostTensor {
    fn from(numbers: Numbers) -> Self {
        numbers.into_tensor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(x: f32, pooled: bool) -> Arc<Text<HostTensor>> {
        Arc::new(Text {
            embedding: HostTensor::new(&[1, 2, 2], vec![x, 2.0 * x, 1.0, x]),
            pooled: pooled.then(|| HostTensor::new(&[1, 2], vec![x, -x])),
        })
    }

    fn between(share: f64) -> Wording {
        let ends = [text(1.0, true), text(3.0, true)];
        Wording::Between(Arc::new(Between::new(ends, share, Interpolation::Linear)))
    }

    #[test]
    fn a_text_between_two_is_blended_once_and_when_it_is_asked_for() {
        let wording = between(0.25);
        let Wording::Between(way) = &wording else {
            unreachable!()
        };
        assert_eq!(wording.tokens(), 2);
        let [embedding, pooled] = [Part::Embedding, Part::Pooled].map(|part| wording.part(part));
        let (embedding, pooled) = (embedding.unwrap(), pooled.unwrap());
        assert_eq!(
            (embedding.shape(), pooled.shape()),
            (&[1, 2, 2][..], &[1, 2][..])
        );
        assert!(embedding.same(&embedding.clone()) && !embedding.same(&pooled));
        assert!(!way.is_blended());
        assert_eq!(embedding.into_tensor().data(), [1.5, 3.0, 1.0, 1.5]);
        let once = wording.text().clone();
        assert_eq!(pooled.into_tensor().data(), [1.5, -1.5]);
        assert!(Arc::ptr_eq(&once, wording.text()));
    }

    #[test]
    fn what_is_the_same_is_told_by_identity() {
        let (a, b) = (between(0.5), between(0.5));
        assert!(a.is(&a.clone()) && !a.is(&b));
        let part = |wording: &Wording| wording.part(Part::Embedding).unwrap();
        assert!(!part(&a).same(&part(&b)));
        let [x, y] = [text(1.0, false), text(1.0, false)].map(Wording::from);
        assert!(x.is(&x.clone()) && !x.is(&y) && !x.is(&a));
        assert!(part(&x).same(&part(&y)));
        assert!(!part(&x).same(&part(&a)) && !part(&a).same(&part(&x)));
        assert!(x.part(Part::Pooled).is_none());
    }

    /// A part that one end alone has is that end's, as in a blend on the host.
    #[test]
    fn a_part_that_only_the_beginning_has_stays() {
        let ends = [text(1.0, true), text(3.0, false)];
        let between = Between::new(ends, 0.5, Interpolation::Spherical);
        let wording = Wording::Between(Arc::new(between));
        let pooled = wording.part(Part::Pooled).unwrap();
        assert!(matches!(pooled, Numbers::Plain(_)));
        assert_eq!(Some(&pooled.into_tensor()), wording.text().pooled.as_ref());
    }
}
