//! What a U-Net's rows are given beside latents, computed where its frames are, and kept there.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Program;
use super::bounds::Bounds;
use super::ends::Ends;
use crate::device::HostTensor;
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::engine::onnxruntime::parts::{Rows, Source, close};
use crate::engine::onnxruntime::plan::Value;
use crate::engine::onnxruntime::{Ahead, Context, Valued};
use crate::engine::{Numbers, Wording};
use crate::error::{Error, Result};
use crate::model::{ModelFolder, Role};

/// How often a program is tried: often enough for the device to make a graph of it.
const TRIALS: usize = 8;

/// A tensor of a context, in the type that the live part of the U-Net takes.
#[derive(Debug)]
pub struct Kept {
    /// The tensor.
    pub(super) tensor: CudaTensor,
    /// The same in main memory, where rows must have it in common: it has to be compared.
    values: Option<HostTensor>,
}

impl Value for Kept {
    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn same(&self, other: &Self) -> bool {
        self.values.is_some() && self.values == other.values
    }
}

impl Context<Kept> {
    /// The device memory that it keeps, part of which it may share with others of the same text.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|kept| kept.tensor.bytes()).sum()
    }
}

/// Makes contexts, on the GPU itself where that can be, else through main memory.
pub struct Contexts {
    cuda: Cuda,
    /// What is computed ahead, and how the live part is fed.
    pub(super) ahead: Ahead,
    /// The types of the live part's inputs but the latent.
    elements: Vec<Element>,
    slow: Option<Slow>,
    /// Of what lies between two texts.
    ends: Ends,
    told: String,
}

/// The slow part, on the compute stream.
struct Slow {
    bounds: Bounds<Filled>,
    /// Why a run of it is no graph, if it is none.
    eager: Option<String>,
    /// Of each of its inputs.
    roles: Vec<Role>,
    /// The shapes of outputs by those of inputs, which no graph tells: those that came out in main memory.
    shapes: Mutex<HashMap<Shapes, Shapes>>,
}

/// What came out of trying it.
#[derive(Debug, Default, PartialEq)]
struct Tried {
    /// The types of what it gives.
    types: Vec<Element>,
    /// See [`Slow::eager`].
    eager: Option<String>,
}

type Shape = Vec<usize>;
type Shapes = Vec<Shape>;
/// What inputs were filled with last.
type Filled = Vec<Numbers>;

/// What the slow part has computed.
enum Computed {
    Here(Numbers),
    /// Until the slow part is run again.
    There(CudaTensor),
}

impl From<Numbers> for Computed {
    fn from(numbers: Numbers) -> Self {
        Self::Here(numbers)
    }
}

impl Contexts {
    /// For the U-Net of `folder`, whose live part takes `elements` beside the latent. The slow part is tried with made-up
    /// rows: what it gives on the GPU must be what it gives in main memory.
    pub fn new(folder: &ModelFolder, cuda: &Cuda, ahead: Ahead, elements: Vec<Element>) -> Self {
        let (slow, why) = match Slow::open(folder, cuda, &ahead, &elements) {
            Ok(slow) => (slow, None),
            Err(why) => (None, Some(why)),
        };
        let why = why.map(|why| format!("; they go through main memory: {why}"));
        let eager = slow.as_ref().and_then(|slow| slow.eager.as_ref());
        let why = why.or_else(|| eager.map(|eager| format!("; command by command: {eager}")));
        Self {
            told: format!("{}{}", ahead.precomputed, why.unwrap_or_default()),
            cuda: cuda.clone(),
            ahead,
            elements,
            slow,
            ends: Ends::default(),
        }
    }

    /// How much is computed ahead, or why nothing is, for people.
    pub fn told(&self) -> &str {
        &self.told
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute). What it gives is ready for any thread.
    pub fn make(
        &self,
        timesteps: &[u32],
        text: &Wording,
        size: (usize, usize),
        like: Option<&Context<Kept>>,
    ) -> Result<Vec<Context<Kept>>> {
        let compute = |value: &Valued| self.compute(value);
        let keep = |tensors| self.keep(tensors);
        let make = || (self.ahead).precompute(timesteps, text, size, like, compute, keep);
        // A frame's list, which may be half noted down, stays the one that is a graph; and other threads have other lists.
        self.cuda.ahead(make)
    }

    fn compute(&self, value: &Valued) -> Result<Vec<Computed>> {
        let here = |computed: Vec<HostTensor>| {
            let numbers = computed.into_iter().map(Numbers::from);
            numbers.map(Computed::Here).collect()
        };
        let Some(slow) = &self.slow else {
            return Ok(here(self.ahead.compute(value)?));
        };
        let given = slow.given(value)?;
        if let Some(computed) = slow.run(&self.cuda, &self.ends, &given)? {
            return Ok(computed.into_iter().map(Computed::There).collect());
        }
        let computed = self.ahead.compute(value)?;
        slow.learn(&given, &computed);
        Ok(here(computed))
    }

    /// Puts tensors, each with the number of its input, into memory of their own.
    fn keep(&self, tensors: Vec<(usize, Computed)>) -> Result<Vec<Kept>> {
        let (mut copies, mut blends) = (Vec::new(), Vec::new());
        let keep = |(i, computed): (usize, Computed)| {
            let element = self.elements[i];
            let common = self.ahead.feeds[i].rows == Rows::Common;
            Ok(match computed {
                Computed::Here(Numbers::Blend(blend)) if !common && Cuda::interpolates(element) => {
                    let tensor = self.cuda.empty(blend.shape(), element)?;
                    blends.push(self.ends.of(&self.cuda, &blend, &tensor)?);
                    Kept {
                        tensor,
                        values: None,
                    }
                }
                Computed::Here(numbers) => {
                    let values = numbers.into_tensor();
                    let shape = values.shape();
                    let tensor = self.cuda.upload_as(shape, values.data(), element)?;
                    Kept {
                        tensor,
                        values: common.then_some(values),
                    }
                }
                Computed::There(from) => {
                    let tensor = self.cuda.empty(from.shape(), element)?;
                    copies.push((from, tensor.clone()));
                    Kept {
                        tensor,
                        values: None,
                    }
                }
            })
        };
        let kept = tensors.into_iter().map(keep).collect::<Result<_>>()?;
        self.cuda.copy_each(&copies)?;
        self.cuda.interpolate(&blends)?;
        Ok(kept)
    }
}

impl Slow {
    /// The slow part, ready and tried with made-up rows; `None` if there is none, an error says why it does not run on the
    /// compute stream.
    fn open(
        folder: &ModelFolder,
        cuda: &Cuda,
        ahead: &Ahead,
        elements: &[Element],
    ) -> std::result::Result<Option<Self>, String> {
        let Some((program, roles)) = ahead.program()? else {
            return Ok(None);
        };
        let mut slow = Self::new(cuda, &program, roles);
        let rows = (ahead.made_up(folder)).ok_or("nothing is known to try it with")?;
        let row = |value: &Valued| -> Result<_> { Ok((slow.given(value)?, ahead.compute(value)?)) };
        let rows = rows.iter().map(|value| row(value));
        let rows: Vec<_> = rows.collect::<Result<_>>().map_err(|e| e.to_string())?;
        let Tried { types, eager } = slow.try_out(cuda, &rows)?;
        slow.eager = eager;
        for (feed, to) in ahead.feeds.iter().zip(elements) {
            if let Source::Computed(output) = feed.source
                && !types
                    .get(output)
                    .is_some_and(|from| Cuda::copies(*from, *to))
            {
                return Err(format!(
                    "its tensor number {output} is of another type than {to:?}"
                ));
            }
        }
        Ok(Some(slow))
    }

    fn new(cuda: &Cuda, program: &Arc<dyn Program>, roles: &[Role]) -> Self {
        Self {
            bounds: Bounds::new(cuda, program),
            eager: None,
            roles: roles.to_vec(),
            shapes: Mutex::default(),
        }
    }

    /// An error unless it gives, for rows by turns, what it gives for them in main memory, as often as it takes for it to become
    /// a graph. Of each row there is what goes in and what comes out.
    fn try_out(
        &self,
        cuda: &Cuda,
        rows: &[(Vec<Numbers>, Vec<HostTensor>)],
    ) -> std::result::Result<Tried, String> {
        let said = |e: Error| e.to_string();
        let (mut tried, ends) = (Tried::default(), Ends::default());
        // Of those lists that this one is among.
        let launches = || {
            cuda.ahead(|| Ok((cuda.launches(), cuda.refusal())))
                .map_err(said)
        };
        for (given, computed) in rows {
            self.learn(given, computed);
        }
        for (trial, (given, expected)) in rows.iter().cycle().take(TRIALS).enumerate() {
            let (before, _) = launches()?;
            // Done at once, so that errors are its own.
            let found = cuda.ahead(|| self.run(cuda, &ends, given)).map_err(said)?;
            let found = found.ok_or("the shapes of what it gives are not known")?;
            if trial + rows.len() < TRIALS {
                continue;
            }
            let (after, refusal) = launches()?;
            tried = Tried {
                types: found.iter().map(CudaTensor::element).collect(),
                eager: (after.graphs == before.graphs)
                    .then(|| refusal.unwrap_or("it cannot be captured, or is not to be".into())),
            };
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let found = cuda.ahead(|| cuda.download(found)).map_err(said)?;
                if !close(expected, &found) {
                    return Err(format!("its tensor number {i} came out wrong there"));
                }
            }
        }
        Ok(tried)
    }

    /// What it is given, in the order of its inputs.
    fn given(&self, value: &Valued) -> Result<Vec<Numbers>> {
        self.roles.iter().map(|role| value(*role)).collect()
    }

    /// Remembers the shapes of what came out.
    fn learn(&self, given: &[Numbers], computed: &[HostTensor]) {
        let computed = computed.iter().map(|t| t.shape().to_vec()).collect();
        self.shapes.lock().insert(shapes(given), computed);
    }

    /// Records a run; what it gives is in the tensors that come back until the next one. `None` if their shapes are not known.
    /// What lies between two texts is blended straight into its input.
    fn run(&self, cuda: &Cuda, ends: &Ends, given: &[Numbers]) -> Result<Option<Vec<CudaTensor>>> {
        let inputs = shapes(given);
        let Some(outputs) = self.shapes.lock().get(&inputs).cloned() else {
            return Ok(None);
        };
        self.bounds.with(0, inputs, &outputs, |bound, filled| {
            // As a rule, runs that follow each other differ in the timestep alone.
            let same = |i: usize| filled.get(i).is_some_and(|filled| filled.same(&given[i]));
            let other: Vec<usize> = (0..given.len()).filter(|i| !same(*i)).collect();
            let (mut copies, mut blends) = (Vec::new(), Vec::new());
            for i in &other {
                let to = &bound.inputs()[*i];
                match &given[*i] {
                    Numbers::Blend(blend) if Cuda::interpolates(to.element()) => {
                        blends.push(ends.of(cuda, blend, to)?);
                    }
                    numbers => {
                        let values = numbers.tensor();
                        let from = cuda.upload_as(values.shape(), values.data(), to.element())?;
                        copies.push((from, to.clone()));
                    }
                }
            }
            cuda.copy_each(&copies)?;
            cuda.interpolate(&blends)?;
            for i in other {
                match filled.get_mut(i) {
                    Some(filled) => filled.clone_from(&given[i]),
                    None => filled.push(given[i].clone()),
                }
            }
            cuda.run(bound.clone())?;
            Ok(Some(bound.outputs().to_vec()))
        })
    }
}

fn shapes(numbers: &[Numbers]) -> Shapes {
    numbers.iter().map(|t| t.shape().to_vec()).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cudarc::driver::result;

    use super::*;
    use crate::computing::{self, When};
    use crate::device::Interpolation;
    use crate::device::cuda::{Launches, Work};
    use crate::engine::{Between, Part, Text, cuda};
    use crate::model::Component;

    /// What a program does that is to give back what it is given.
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Right,
        /// It goes on giving the last input as it was first.
        Stale,
        /// It writes nothing.
        Idle,
        Unbindable,
        Failing,
        /// It is not to be captured.
        Uncapturable,
        /// Nor can this one, which does not know.
        Uncaptured,
    }

    struct Copier(Kind);

    struct Bound {
        kind: Kind,
        cuda: Cuda,
        inputs: Vec<CudaTensor>,
        outputs: Vec<CudaTensor>,
        runs: AtomicUsize,
    }

    impl Program for Copier {
        fn component(&self) -> Component {
            Component::Unet
        }

        fn elements(&self) -> Result<Vec<Element>> {
            Ok(vec![Element::F32; 2])
        }

        fn bind(
            self: Arc<Self>,
            cuda: &Cuda,
            inputs: &[Shape],
            outputs: &[Shape],
        ) -> Result<Arc<dyn cuda::Bound>> {
            if self.0 == Kind::Unbindable {
                return Err(Program::error(&*self, "has no room".into()));
            }
            let memory = |shapes: &[Shape]| {
                let memory = |shape: &Shape| cuda.empty(shape, Element::F32);
                shapes.iter().map(memory).collect::<Result<Vec<_>>>()
            };
            Ok(Arc::new(Bound {
                kind: self.0,
                cuda: cuda.clone(),
                inputs: memory(inputs)?,
                outputs: memory(outputs)?,
                runs: AtomicUsize::new(0),
            }))
        }
    }

    impl cuda::Bound for Bound {
        fn inputs(&self) -> &[CudaTensor] {
            &self.inputs
        }

        fn outputs(&self) -> &[CudaTensor] {
            &self.outputs
        }
    }

    impl Work for Bound {
        fn enqueue(&self) -> Result<()> {
            let run = self.runs.fetch_add(1, Ordering::Relaxed);
            let first = run == 0;
            match self.kind {
                // What comes again is captured the fourth time.
                Kind::Uncaptured if run == 3 => {
                    return Err(Error::engine("unet", "asks for memory"));
                }
                Kind::Idle => return Ok(()),
                Kind::Failing => return Err(Error::engine("unet", "does not run")),
                _ => {}
            }
            let fresh = match self.kind {
                Kind::Stale if !first => self.inputs.len() - 1,
                _ => self.inputs.len(),
            };
            for (from, to) in self.inputs.iter().zip(&self.outputs).take(fresh) {
                let stream = self.cuda.stream().cast();
                // SAFETY: both are as long, and live as long as this.
                unsafe {
                    result::memcpy_dtod_async(to.pointer(), from.pointer(), to.bytes(), stream)
                }
                .unwrap();
            }
            Ok(())
        }

        fn capturable(&self) -> bool {
            self.kind != Kind::Uncapturable && self.runs.load(Ordering::Relaxed) > 0
        }
    }

    fn tensor(shape: &[usize], x: f32) -> HostTensor {
        let values = (0..shape.iter().product()).map(|i| x + i as f32);
        HostTensor::new(shape, values.collect())
    }

    fn plain(tensors: &[HostTensor]) -> Vec<Numbers> {
        tensors.iter().cloned().map(Numbers::from).collect()
    }

    fn row(seed: f32) -> (Vec<Numbers>, Vec<HostTensor>) {
        let given = vec![tensor(&[1, 5, 3], seed), tensor(&[1], 3.0 * seed)];
        (plain(&given), given)
    }

    /// In its trial it becomes a graph; what is wrong with it comes out there, also what only a second row shows.
    #[test]
    fn a_slow_part_that_comes_out_wrong_is_not_taken() {
        let name = "engine::cuda::contexts::tests::a_slow_part_that_comes_out_wrong_is_not_taken";
        computing::run(name, &[], &[When::Late, When::Early], || {
            let cuda = Cuda::new(0).unwrap();
            let tried = |kind| {
                let program: Arc<dyn Program> = Arc::new(Copier(kind));
                let slow = Slow::new(&cuda, &program, &[Role::Text, Role::Timestep]);
                slow.try_out(&cuda, &[row(1.0), row(20.0)])
            };
            let right = Tried {
                types: vec![Element::F32; 2],
                eager: None,
            };
            assert_eq!(tried(Kind::Right).as_ref(), Ok(&right));
            let graphs = cuda.ahead(|| Ok(cuda.launches().graphs)).unwrap();
            assert!(graphs > 2, "{graphs} graphs");
            // Those of frames are counted by themselves.
            assert_eq!(cuda.launches(), Launches::default());
            for (kind, reason) in [
                (Kind::Stale, "number 1 came out wrong"),
                (Kind::Idle, "number 0 came out wrong"),
                (Kind::Unbindable, "has no room"),
                (Kind::Failing, "does not run"),
            ] {
                let why = tried(kind).unwrap_err();
                assert!(why.contains(reason), "{why}");
            }
            // These are right nevertheless, and tell.
            for (kind, reason) in [
                (Kind::Uncapturable, "cannot be captured"),
                (Kind::Uncaptured, "asks for memory"),
            ] {
                let tried = tried(kind).unwrap();
                assert_eq!(tried.types, right.types);
                let why = tried.eager.unwrap();
                assert!(why.contains(reason), "{why}");
            }
            // Which says nothing of another one.
            assert_eq!(tried(Kind::Right), Ok(right));
        });
    }

    /// Of shapes that nobody has seen, what comes out is not known.
    #[test]
    fn shapes_are_learnt_for_each_length_of_text() {
        let name = "engine::cuda::contexts::tests::shapes_are_learnt_for_each_length_of_text";
        computing::run(name, &[], &[When::Late], || {
            let cuda = Cuda::new(0).unwrap();
            let program: Arc<dyn Program> = Arc::new(Copier(Kind::Right));
            let slow = Slow::new(&cuda, &program, &[Role::Text, Role::Timestep]);
            let run = |given: &[Numbers]| slow.run(&cuda, &Ends::default(), given).unwrap();
            let (given, computed) = row(4.0);
            assert!(run(&given).is_none());
            slow.learn(&given, &computed);
            let found = run(&given).unwrap();
            assert_eq!(cuda.download(&found[0]).unwrap(), computed[0]);
            assert_eq!(cuda.download(&found[1]).unwrap(), computed[1]);
            let longer = HostTensor::new(&[1, 10, 3], vec![0.5; 30]);
            assert!(run(&[longer.into(), given[1].clone()]).is_none());
        });
    }

    /// Both parts of a text, the pooled one without tokens, on the way there and back, and then the text itself: each time
    /// what the host makes of it, and nothing of it is made in main memory.
    #[test]
    fn what_lies_between_two_texts_is_blended_into_the_inputs() {
        let name =
            "engine::cuda::contexts::tests::what_lies_between_two_texts_is_blended_into_the_inputs";
        computing::run(name, &[], &[When::Late, When::Early], || {
            let cuda = Cuda::new(0).unwrap();
            let program: Arc<dyn Program> = Arc::new(Copier(Kind::Right));
            let slow = Slow::new(&cuda, &program, &[Role::Text, Role::Pooled]);
            let ends = Ends::default();
            let text = |x: f32| {
                Arc::new(Text {
                    embedding: tensor(&[1, 5, 3], x),
                    pooled: Some(tensor(&[1, 7], -3.0 * x)),
                })
            };
            let texts = [text(1.0), text(-20.0)];
            let given = |wording: &Wording| {
                let parts = [Part::Embedding, Part::Pooled];
                parts.map(|part| wording.part(part).unwrap())
            };
            let first = given(&texts[0].clone().into());
            slow.learn(&first, &first.clone().map(Numbers::into_tensor));
            let run = |wording: &Wording| -> Vec<HostTensor> {
                let given = given(wording);
                let found = cuda.ahead(|| slow.run(&cuda, &ends, &given));
                let found = found.unwrap().unwrap();
                let here = |tensor| cuda.ahead(|| cuda.download(tensor)).unwrap();
                found.iter().map(here).collect()
            };
            let mut allocated = 0;
            for frame in 0..40 {
                let share = f64::from(frame % 11) / 10.0;
                let (how, back) = match frame % 3 {
                    0 => (Interpolation::Linear, 0),
                    _ => (Interpolation::Spherical, frame as usize % 2),
                };
                let way = [texts[back].clone(), texts[1 - back].clone()];
                let between = Arc::new(Between::new(way, share, how));
                let wording = Wording::Between(between.clone());
                // The second time its inputs are as they have to be.
                let found = [run(&wording), run(&wording)];
                assert!(!between.is_blended());
                let expected = given(&wording).map(Numbers::into_tensor);
                for found in &found {
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(found.shape(), expected.shape());
                        for (x, y) in found.data().iter().zip(expected.data()) {
                            assert!((x - y).abs() < 1e-4, "frame {frame}: {x}, not {y}");
                        }
                    }
                }
                // In between, the text itself.
                if frame % 10 == 9 {
                    let found = run(&texts[1].clone().into());
                    assert_eq!(found[1], *texts[1].part(Part::Pooled).unwrap());
                }
                match frame {
                    0..20 => allocated = cuda.allocated(),
                    _ => assert_eq!(cuda.allocated(), allocated),
                }
            }
        });
    }
}
