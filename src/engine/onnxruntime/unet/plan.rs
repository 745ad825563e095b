//! Which rows of a U-Net call go into one run of the graph, and how what they have goes together.

use std::sync::Arc;

use super::parts::{Feed, Rows};
use crate::device::HostTensor;

/// A tensor of a context, wherever it lives.
pub trait Value {
    /// Its dimensions, outermost first.
    fn shape(&self) -> &[usize];

    /// Whether it holds the same values as `other`. Asked only of tensors that rows must have in common.
    fn same(&self, other: &Self) -> bool;
}

impl Value for HostTensor {
    fn shape(&self) -> &[usize] {
        HostTensor::shape(self)
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

/// What the live part of the U-Net takes beside the latent, for one row: keys, values and time embeddings, or timestep
/// and text themselves if nothing is computed ahead. In the order of its inputs.
#[derive(Debug)]
pub struct Context<V = HostTensor>(pub(in crate::engine) Vec<Arc<V>>);

impl<V> Clone for Context<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Context<HostTensor> {
    /// The memory that it keeps, part of which it may share with others of the same text.
    pub fn bytes(&self) -> usize {
        let values: usize = self.0.iter().map(|tensor| tensor.data().len()).sum();
        values * size_of::<f32>()
    }
}

/// The runs that serve rows with `contexts`: for each the rows in it, by number. Rows that disagree on what a run has once
/// are in different ones, and no run has more than `batch` rows.
pub fn runs<V: Value>(
    contexts: &[&Context<V>],
    feeds: &[Feed],
    batch: Option<usize>,
) -> Vec<Vec<usize>> {
    let agree = |a: usize, b: usize| {
        let pairs = contexts[a].0.iter().zip(&contexts[b].0);
        feeds
            .iter()
            .zip(pairs)
            .all(|(feed, (a, b))| feed.rows != Rows::Common || Arc::ptr_eq(a, b) || a.same(b))
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in 0..contexts.len() {
        match groups.iter_mut().find(|group| agree(group[0], row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let most = batch.unwrap_or(usize::MAX).max(1);
    let runs = groups.iter().flat_map(|group| group.chunks(most));
    runs.map(<[usize]>::to_vec).collect()
}

/// The rows of a run, filled up with its last one to the batch that the graph fixes.
pub fn filled(run: &[usize], batch: Option<usize>) -> impl Iterator<Item = usize> {
    let filler = run.last().copied().into_iter().cycle();
    let rows = batch.unwrap_or(run.len());
    run.iter().copied().chain(filler).take(rows)
}

/// The tensors that one input of a run is put together from, one below the other, given what each of its rows has for it:
/// a single one where that does for all. `None` if they do not fit together.
pub fn together<'a, V: Value>(rows: &Rows, parts: &[&'a Arc<V>]) -> Option<Vec<&'a Arc<V>>> {
    let first = *parts.first()?;
    let shared = || parts.iter().all(|part| Arc::ptr_eq(part, first));
    let once = match rows {
        Rows::Stacked => parts.len() == 1,
        Rows::Broadcast(tensor) => {
            parts.len() == 1 || (tensor.does_for_all(first.shape()) && shared())
        }
        Rows::Common => true,
    };
    if once {
        return Some(vec![first]);
    }
    let shape = first.shape();
    let fit = !shape.is_empty() && parts.iter().all(|part| part.shape() == shape);
    fit.then(|| parts.to_vec())
}

/// The shape of what [`together`] gives, put together.
pub fn stacked_shape<V: Value>(parts: &[&Arc<V>]) -> Vec<usize> {
    let mut shape = parts.first().map_or(Vec::new(), |p| p.shape().to_vec());
    if parts.len() > 1
        && let Some(rows) = shape.first_mut()
    {
        *rows *= parts.len();
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::super::parts::Source;
    use super::*;
    use crate::model::{Boundary, Role};

    fn feed(rows: Rows) -> Feed {
        Feed {
            source: Source::Given(Role::Timestep),
            of_timestep: true,
            rows,
        }
    }

    fn tensor(shape: &[usize], value: f32) -> Arc<HostTensor> {
        let data = vec![value; shape.iter().product()];
        Arc::new(HostTensor::new(shape, data))
    }

    fn boundary() -> Boundary {
        Boundary {
            name: "keys".into(),
            is_input: false,
            from: vec!["text".into()],
            broadcasts: true,
        }
    }

    #[test]
    fn rows_with_other_common_tensors_are_in_other_runs() {
        let feeds = [feed(Rows::Common), feed(Rows::Stacked)];
        let context = |timestep, text| Context(vec![tensor(&[], timestep), tensor(&[1, 2], text)]);
        // The same timestep in different memory is the same.
        let all = [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (1.0, 3.0)];
        let contexts = all.map(|(timestep, text)| context(timestep, text));
        let contexts: Vec<_> = contexts.iter().collect();
        assert_eq!(runs(&contexts, &feeds, None), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(
            runs(&contexts, &feeds, Some(2)),
            [vec![0, 2], vec![4], vec![1, 3]]
        );
        let stacked = [feed(Rows::Stacked), feed(Rows::Stacked)];
        assert_eq!(runs(&contexts, &stacked, None), [vec![0, 1, 2, 3, 4]]);
        assert!(runs::<HostTensor>(&[], &feeds, None).is_empty());
    }

    #[test]
    fn runs_are_filled_up_with_their_last_row() {
        let filled = |run: &[usize], batch| filled(run, batch).collect::<Vec<_>>();
        assert_eq!(filled(&[4, 7], Some(4)), [4, 7, 7, 7]);
        assert_eq!(filled(&[4, 7], Some(2)), [4, 7]);
        assert_eq!(filled(&[4, 7], None), [4, 7]);
    }

    #[test]
    fn what_all_rows_share_is_given_once_where_that_is_allowed() {
        let (a, b) = (tensor(&[1, 3, 2], 1.0), tensor(&[1, 3, 2], 2.0));
        let longer = tensor(&[1, 4, 2], 1.0);
        let matrix = tensor(&[1, 3], 1.0);
        let count =
            |rows: &Rows, parts: &[&Arc<HostTensor>]| together(rows, parts).map(|p| p.len());
        let broadcast = Rows::Broadcast(boundary());
        assert_eq!(count(&Rows::Stacked, &[&a]), Some(1));
        assert_eq!(count(&Rows::Stacked, &[&a, &a]), Some(2));
        assert_eq!(count(&broadcast, &[&a, &a, &a]), Some(1));
        assert_eq!(count(&broadcast, &[&a, &b, &a]), Some(3));
        // Its rows may be an operand's own.
        assert_eq!(count(&broadcast, &[&matrix, &matrix]), Some(2));
        assert_eq!(count(&Rows::Common, &[&a, &b]), Some(1));
        assert_eq!(count(&Rows::Stacked, &[&a, &longer]), None);
        let scalar = tensor(&[], 1.0);
        assert_eq!(count(&Rows::Stacked, &[&scalar, &scalar]), None);
        assert_eq!(count(&Rows::Stacked, &[]), None);
    }

    #[test]
    fn stacking_multiplies_the_first_dimension() {
        let (one, scalar) = (tensor(&[2, 3], 1.0), tensor(&[], 1.0));
        assert_eq!(stacked_shape(&[&one, &one, &one]), [6, 3]);
        assert_eq!(stacked_shape(&[&one]), [2, 3]);
        assert_eq!(stacked_shape(&[&scalar]), [0; 0]);
    }
}
