//! From one prompt to the next, over a time.

use std::sync::Arc;

use super::{Conditioning, Contexts, Interpolation};
use crate::device::HostTensor;
use crate::engine::{Between, Model, Text, Wording};

/// What a text in fewer chunks is filled up with to more: the encoding of an empty chunk.
pub type Filler = Arc<Text<HostTensor>>;

/// Encoded prompts that are to be put in force.
pub struct Target<M: Model> {
    /// What the U-Net needs of them.
    pub conditioning: Conditioning<M>,
    /// What the prompt and the negative prompt are filled up with.
    pub fillers: [Filler; 2],
}

impl<M: Model> Clone for Target<M> {
    fn clone(&self) -> Self {
        Self {
            conditioning: self.conditioning.clone(),
            fillers: self.fillers.clone(),
        }
    }
}

impl<M: Model> Target<M> {
    fn in_force(&self) -> InForce<M> {
        InForce {
            conditioning: self.conditioning.clone(),
            fillers: self.fillers.clone().map(Wording::from),
        }
    }
}

/// What the stream has, and what its texts are filled up with.
struct InForce<M: Model> {
    conditioning: Conditioning<M>,
    fillers: [Wording; 2],
}

impl<M: Model> InForce<M> {
    /// Prompt and negative prompt as ends of a way. What is on a way itself is blended here, once.
    fn ends(&self) -> [End; 2] {
        let Conditioning { prompt, negative } = &self.conditioning;
        let wordings = [prompt.wording(), negative.wording()];
        [0, 1].map(|i| (wordings[i].text().clone(), self.fillers[i].text().clone()))
    }
}

/// A text, and what it is filled up with.
type End = (Arc<Text<HostTensor>>, Filler);

/// The prompts in force, and those that they are turning into. Times are in nanoseconds.
pub struct Morph<M: Model> {
    /// What was decided on last.
    target: Target<M>,
    /// What the stream has; the target's unless something is under way.
    in_force: InForce<M>,
    way: Option<Way>,
    /// The time of the last frame, where it had one.
    now: Option<u64>,
    /// Whether the stream has not been given what is in force yet.
    fresh: bool,
}

/// The way from some prompts to others.
struct Way {
    /// Prompt and negative prompt at its start and at its end, in one number of chunks.
    from: [End; 2],
    to: [End; 2],
    gone: u64,
    length: u64,
}

impl<M: Model> Morph<M> {
    /// With `target` in force at once.
    pub fn new(target: Target<M>) -> Self {
        Self {
            in_force: target.in_force(),
            target,
            way: None,
            now: None,
            fresh: true,
        }
    }

    /// Has the prompts in force turn into `target` over `length`, from the frame of the time `now` on. That frame still shows
    /// what is in force, in the midst of another change too; one that comes `length` later is the first to show `target`
    /// alone.
    pub fn turn(
        &mut self,
        target: Target<M>,
        length: u64,
        now: Option<u64>,
        interpolation: Interpolation,
    ) {
        self.advance(now, interpolation);
        self.way = match length {
            0 => {
                self.in_force = target.in_force();
                self.fresh = true;
                None
            }
            _ => {
                let (from, to) = (self.in_force.ends(), target.in_force().ends());
                Some(Way::new(from, to, length))
            }
        };
        self.target = target;
    }

    /// Whether the prompts in force are still on their way to what was decided on.
    pub fn is_turning(&self) -> bool {
        self.way.is_some()
    }

    /// What is decided on, whether or not it is in force alone yet.
    pub fn target(&self) -> &Target<M> {
        &self.target
    }

    /// What is in force now.
    pub fn in_force(&self) -> &Conditioning<M> {
        &self.in_force.conditioning
    }

    /// The prompts for the frame of this time, if they differ from those of the frame before. Without a time a change comes
    /// to its end. Time that goes back, as after a seek, is not counted.
    pub fn at(
        &mut self,
        now: Option<u64>,
        interpolation: Interpolation,
    ) -> Option<Conditioning<M>> {
        self.advance(now, interpolation);
        std::mem::take(&mut self.fresh).then(|| self.in_force.conditioning.clone())
    }

    fn advance(&mut self, now: Option<u64>, interpolation: Interpolation) {
        let before = std::mem::replace(&mut self.now, now);
        let Some(way) = &mut self.way else {
            return;
        };
        let gone = match (before, now) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => way.length,
        };
        way.gone = way.gone.saturating_add(gone);
        if way.gone >= way.length {
            self.way = None;
            self.in_force = self.target.in_force();
            self.fresh = true;
        } else if gone > 0 {
            self.in_force = way.in_force(&self.target, &self.in_force, interpolation);
            self.fresh = true;
        }
    }
}

impl Way {
    fn new(from: [End; 2], to: [End; 2], length: u64) -> Self {
        let tokens = |ends: &[End; 2]| ends[0].0.embedding.shape()[1];
        let longest = tokens(&from).max(tokens(&to));
        let fill =
            |ends: [End; 2]| ends.map(|(text, filler)| (filled(text, &filler, longest), filler));
        let (mut from, to) = (fill(from), fill(to));
        // What stays the same is one text, whose contexts serve all the way.
        for (from, to) in from.iter_mut().zip(&to) {
            if same(&from.0, &to.0) {
                from.0.clone_from(&to.0);
            }
        }
        Self {
            from,
            to,
            gone: 0,
            length,
        }
    }

    /// What is in force at this point of it. What does not change on it keeps its contexts; what does is not blended here.
    fn in_force<M: Model>(
        &self,
        end: &Target<M>,
        before: &InForce<M>,
        interpolation: Interpolation,
    ) -> InForce<M> {
        let share = self.gone as f64 / self.length as f64;
        let blend = |a: &Arc<Text<_>>, b: &Arc<Text<_>>| match Arc::ptr_eq(a, b) {
            true => Wording::Text(a.clone()),
            false => {
                let between = Between::new([a.clone(), b.clone()], share, interpolation);
                Wording::Between(Arc::new(between))
            }
        };
        let [prompt, negative] = [0, 1].map(|i| {
            let (text, filler) = &self.from[i];
            let (to, to_filler) = &self.to[i];
            (blend(text, to), blend(filler, to_filler))
        });
        let known = |wording: Wording, ends: [&Contexts<M>; 2]| {
            let known = ends.into_iter().find(|end| end.wording().is(&wording));
            known.cloned().unwrap_or_else(|| Contexts::new(wording))
        };
        let (end, before) = (&end.conditioning, &before.conditioning);
        InForce {
            conditioning: Conditioning {
                prompt: known(prompt.0, [&before.prompt, &end.prompt]),
                negative: known(negative.0, [&before.negative, &end.negative]),
            },
            fillers: [prompt.1, negative.1],
        }
    }
}

/// `text` with `filler` behind it until it is `length` tokens long.
fn filled(text: Arc<Text<HostTensor>>, filler: &Filler, length: usize) -> Arc<Text<HostTensor>> {
    let &[_, tokens, width] = text.embedding.shape() else {
        return text;
    };
    if tokens >= length {
        return text;
    }
    let mut data = text.embedding.data().to_vec();
    let more = filler.embedding.data().iter().copied().cycle();
    data.extend(more.take((length - tokens) * width));
    Arc::new(Text {
        embedding: HostTensor::new(&[1, length, width], data),
        pooled: text.pooled.clone(),
    })
}

fn same(a: &Arc<Text<HostTensor>>, b: &Arc<Text<HostTensor>>) -> bool {
    Arc::ptr_eq(a, b) || (a.embedding == b.embedding && a.pooled == b.pooled)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scalar;
    use super::*;

    const LINEAR: Interpolation = Interpolation::Linear;

    /// Tokens of one number each.
    fn text(tokens: &[f32]) -> Arc<Text<HostTensor>> {
        Arc::new(Text {
            embedding: HostTensor::new(&[1, tokens.len(), 1], tokens.to_vec()),
            pooled: None,
        })
    }

    fn target(prompt: &[f32], negative: &[f32]) -> Target<Scalar> {
        Target {
            conditioning: Conditioning {
                prompt: Contexts::new(text(prompt)),
                negative: Contexts::new(text(negative)),
            },
            fillers: [text(&[9.0]), text(&[-9.0])],
        }
    }

    fn values(contexts: &Contexts<Scalar>) -> &[f32] {
        contexts.wording().text().embedding.data()
    }

    /// The prompt of the frame at this time, if it is another one than the frame before had.
    fn prompt(morph: &mut Morph<Scalar>, now: impl Into<Option<u64>>) -> Option<Vec<f32>> {
        let conditioning = morph.at(now.into(), LINEAR);
        conditioning.map(|conditioning| values(&conditioning.prompt).to_vec())
    }

    #[test]
    fn it_goes_from_end_to_end_by_the_frames_times() {
        let mut morph = Morph::new(target(&[1.0], &[0.0]));
        assert_eq!(prompt(&mut morph, 100), Some(vec![1.0]));
        assert_eq!(prompt(&mut morph, 110), None);
        morph.turn(target(&[3.0], &[0.0]), 40, Some(120), LINEAR);
        assert_eq!(prompt(&mut morph, 120), None);
        assert_eq!(prompt(&mut morph, 130), Some(vec![1.5]));
        // Frames that share a time share a prompt, and those that are far apart are far apart.
        assert_eq!(prompt(&mut morph, 130), None);
        assert_eq!(prompt(&mut morph, 150), Some(vec![2.5]));
        assert_eq!(prompt(&mut morph, 160), Some(vec![3.0]));
        let text = morph.target().conditioning.prompt.wording();
        assert!(morph.in_force().prompt.wording().is(text));
        assert_eq!(prompt(&mut morph, 170), None);
    }

    #[test]
    fn without_a_length_or_a_time_it_is_there_at_once() {
        let mut morph = Morph::new(target(&[1.0], &[0.0]));
        morph.at(Some(0), LINEAR);
        morph.turn(target(&[3.0], &[0.0]), 0, Some(10), LINEAR);
        assert_eq!(prompt(&mut morph, 10), Some(vec![3.0]));
        morph.turn(target(&[5.0], &[0.0]), 40, None, LINEAR);
        assert_eq!(prompt(&mut morph, None), Some(vec![5.0]));
        morph.turn(target(&[7.0], &[0.0]), 40, Some(0), LINEAR);
        assert_eq!(prompt(&mut morph, 0), None);
        assert_eq!(prompt(&mut morph, None), Some(vec![7.0]));
    }

    #[test]
    fn a_change_amid_a_change_starts_from_what_is_in_force() {
        let mut morph = Morph::new(target(&[0.0], &[0.0]));
        morph.at(Some(0), LINEAR);
        morph.turn(target(&[8.0], &[0.0]), 40, Some(0), LINEAR);
        assert_eq!(prompt(&mut morph, 10), Some(vec![2.0]));
        // In force at 20 is 4.
        morph.turn(target(&[-4.0], &[0.0]), 80, Some(20), LINEAR);
        assert_eq!(prompt(&mut morph, 20), Some(vec![4.0]));
        assert_eq!(prompt(&mut morph, 60), Some(vec![0.0]));
        morph.turn(target(&[1.0], &[0.0]), 0, Some(70), LINEAR);
        assert_eq!(prompt(&mut morph, 70), Some(vec![1.0]));
        assert_eq!(prompt(&mut morph, 80), None);
    }

    #[test]
    fn time_that_goes_back_does_not_count() {
        let mut morph = Morph::new(target(&[0.0], &[0.0]));
        morph.at(Some(1000), LINEAR);
        morph.turn(target(&[8.0], &[0.0]), 40, Some(1000), LINEAR);
        assert_eq!(prompt(&mut morph, 1010), Some(vec![2.0]));
        assert_eq!(prompt(&mut morph, 0), None);
        assert_eq!(prompt(&mut morph, 20), Some(vec![6.0]));
        assert_eq!(prompt(&mut morph, u64::MAX), Some(vec![8.0]));
    }

    #[test]
    fn the_negative_prompt_turns_too_and_what_stays_keeps_its_contexts() {
        let mut morph = Morph::new(target(&[0.0], &[2.0]));
        morph.at(Some(0), LINEAR);
        morph.turn(target(&[0.0], &[4.0]), 40, Some(0), LINEAR);
        let conditioning = morph.at(Some(10), LINEAR).unwrap();
        assert_eq!(values(&conditioning.negative), [2.5]);
        let end = &morph.target().conditioning;
        assert!(conditioning.prompt.wording().is(end.prompt.wording()));
        assert!(!conditioning.negative.wording().is(end.negative.wording()));
    }

    /// Texts of other lengths are filled up with what an empty chunk is encoded as, half-way texts with half-way ones.
    #[test]
    fn texts_of_several_lengths_are_filled_up() {
        let mut morph = Morph::new(target(&[0.0], &[2.0]));
        morph.at(Some(0), LINEAR);
        morph.turn(
            target(&[4.0, 8.0, 12.0], &[2.0, -9.0, -9.0]),
            40,
            Some(0),
            LINEAR,
        );
        let conditioning = morph.at(Some(10), LINEAR).unwrap();
        assert_eq!(values(&conditioning.prompt), [1.0, 8.75, 9.75]);
        assert_eq!(values(&conditioning.negative), [2.0, -9.0, -9.0]);
        let conditioning = morph.at(Some(40), LINEAR).unwrap();
        assert_eq!(values(&conditioning.prompt), [4.0, 8.0, 12.0]);
        // And back to one chunk.
        morph.turn(target(&[0.0], &[2.0]), 40, Some(100), LINEAR);
        let half = morph.at(Some(120), LINEAR).unwrap();
        assert_eq!(values(&half.prompt), [2.0, 8.5, 10.5]);
        assert_eq!(values(&half.negative), [2.0, -9.0, -9.0]);
        let later = morph.at(Some(130), LINEAR).unwrap();
        assert!(half.negative.wording().is(later.negative.wording()));
        assert_eq!(prompt(&mut morph, 140), Some(vec![0.0]));
    }
}
