//! Dimensions: what operators make of those of their operands.

use super::super::details::{DIMENSIONS, SMALL};
use super::super::size::Size;
use super::arithmetic::{broadcast, integers};
use super::{Case, Fact, Fresh, Known};

/// `axis` counted from the start, if a tensor of `rank` dimensions has it.
fn place(axis: i64, rank: usize) -> Option<usize> {
    let axis = match axis {
        0.. => axis,
        _ => axis.checked_add(rank as i64)?,
    };
    usize::try_from(axis).ok().filter(|axis| *axis < rank)
}

impl Case<'_, '_> {
    fn dims(&self, input: usize) -> Option<&Vec<Size>> {
        self.input(input)?.dims.as_ref()
    }

    /// A tensor with these dimensions, of the type of the first input.
    fn shaped(&self, dims: Vec<Size>) -> Option<Fact> {
        Some(Fact {
            dtype: self.input(0)?.dtype,
            dims: Some(dims),
            values: Known::Nothing,
        })
    }

    /// The whole numbers that input `i` gives, or, before they became inputs, the attribute `name`.
    fn listed(&self, i: usize, name: &str) -> Option<Vec<i64>> {
        match self.attributes.integers(name) {
            Some(values) => Some(values.to_vec()),
            None => self.input(i)?.numbers(),
        }
    }

    pub(super) fn gather(&self) -> Option<Fact> {
        let (data, index) = (self.input(0)?, self.input(1)?);
        let axis = place(self.attributes.integer("axis", 0)?, data.rank()?)?;
        if let Some(values) = data.integers() {
            let at = |i: &i64| values.get(place(*i, values.len())?)?.clone();
            let chosen = index.numbers()?.iter().map(at).collect();
            return Some(integers(index.rank()?, chosen));
        }
        let (before, after) = data.dims.as_ref()?.split_at(axis);
        self.shaped([before, index.dims.as_ref()?, &after[1..]].concat())
    }

    pub(super) fn slice(&self, fresh: Fresh) -> Option<Fact> {
        let data = self.input(0)?;
        let rank = data.rank()?;
        let (starts, ends) = (self.listed(1, "starts"), self.listed(2, "ends"));
        let axes = match (self.input(3), self.attributes.get("axes")) {
            (Some(_), _) | (None, Some(_)) => self.listed(3, "axes")?,
            (None, None) => (0..starts.as_ref()?.len() as i64).collect(),
        };
        let stepped = self.input(4).is_some_and(
            |steps| !matches!(steps.numbers(), Some(steps) if steps.iter().all(|s| *s == 1)),
        );
        // From where to where the axis number `i` of `axes` is cut, if it is `length` long.
        let part = |i: usize, length: i64| {
            let bound = |list: &Option<Vec<i64>>| {
                let at = *list.as_ref()?.get(i)?;
                let from_start = if at < 0 {
                    at.saturating_add(length)
                } else {
                    at
                };
                Some(from_start.clamp(0, length))
            };
            let (start, end) = (bound(&starts)?, bound(&ends)?);
            (!stepped).then_some(start..end.max(start))
        };
        if let (Some(values), [0 | -1]) = (data.integers(), &axes[..]) {
            let part = part(0, values.len() as i64)?;
            let values = values.get(part.start as usize..part.end as usize)?;
            return Some(integers(1, values.to_vec()));
        }
        let mut dims = data.dims.clone()?;
        for (i, axis) in axes.into_iter().enumerate() {
            let size = dims.get_mut(place(axis, rank)?)?;
            let part = size.number().and_then(|length| part(i, length));
            *size = part.map_or_else(&mut *fresh, |p| Size::known(p.end - p.start));
        }
        self.shaped(dims)
    }

    /// The same values with dimensions `dims`.
    fn with(&self, dims: Vec<Size>) -> Option<Fact> {
        let input = self.input(0)?;
        let values = match (&input.values, dims.len()) {
            (Known::Integers(_), 2..) => Known::Nothing,
            (values, _) => values.clone(),
        };
        Some(Fact {
            dtype: input.dtype,
            dims: Some(dims),
            values,
        })
    }

    fn places(&self, rank: usize) -> Option<Vec<usize>> {
        let axes = self.listed(1, "axes")?;
        axes.iter().map(|axis| place(*axis, rank)).collect()
    }

    pub(super) fn unsqueeze(&self) -> Option<Fact> {
        let dims = self.dims(0)?;
        let rank = dims.len() + self.listed(1, "axes")?.len();
        let axes = self.places(rank)?;
        let mut old = dims.iter().cloned();
        let each = (0..rank).map(|i| match axes.contains(&i) {
            true => Some(Size::known(1)),
            false => old.next(),
        });
        self.with(each.collect::<Option<_>>()?)
    }

    pub(super) fn squeeze(&self) -> Option<Fact> {
        let dims = self.dims(0)?;
        let all = self.input(1).is_none() && self.attributes.get("axes").is_none();
        if all && dims.iter().any(|size| size.number().is_none()) {
            return None;
        }
        let axes = match all {
            true => (0..dims.len()).filter(|i| dims[*i].is(1)).collect(),
            false => self.places(dims.len())?,
        };
        let kept = dims.iter().enumerate().filter(|(i, _)| !axes.contains(i));
        self.with(kept.map(|(_, size)| size.clone()).collect())
    }

    pub(super) fn flatten(&self, fresh: Fresh) -> Option<Fact> {
        let dims = self.dims(0)?;
        let axis = match self.attributes.integer("axis", 1)? {
            axis if axis == dims.len() as i64 => dims.len(),
            axis => place(axis, dims.len())?,
        };
        let (before, after) = dims.split_at(axis);
        let mut size = |dims| Size::product(dims).unwrap_or_else(&mut *fresh);
        self.shaped(vec![size(before), size(after)])
    }

    pub(super) fn concat(&self, fresh: Fresh) -> Option<Fact> {
        let rank = self.input(0)?.rank()?;
        let axis = place(self.attributes.integer("axis", 0)?, rank)?;
        let lists: Option<Vec<_>> = self.inputs.iter().map(|input| input.integers()).collect();
        if let (Some(lists), 1) = (lists, rank)
            && lists.iter().map(|list| list.len()).sum::<usize>() <= SMALL
        {
            return Some(integers(1, lists.concat()));
        }
        let all: Option<Vec<_>> = self
            .inputs
            .iter()
            .map(|input| input.dims.as_ref())
            .collect();
        let all = all?;
        if all.iter().any(|dims| dims.len() != rank) {
            return None;
        }
        let size = |i: usize| {
            let mut sizes = all.iter().map(|dims| &dims[i]);
            if i == axis {
                let sum = sizes.try_fold(0i64, |sum, size| sum.checked_add(size.number()?));
                return sum.map_or_else(&mut *fresh, Size::known);
            }
            // They are all the same; a number says most.
            let first = sizes.clone().next();
            let known = sizes.find(|size| size.number().is_some());
            known.or(first).cloned().unwrap_or_else(&mut *fresh)
        };
        self.shaped((0..rank).map(size).collect())
    }

    pub(super) fn split(&self, fresh: Fresh) -> Vec<Fact> {
        let outputs = self.node.outputs.len();
        if outputs > SMALL {
            return Vec::new();
        }
        let sizes = || {
            let dims = self.dims(0)?;
            let axis = place(self.attributes.integer("axis", 0)?, dims.len())?;
            Some((dims, axis))
        };
        let Some((dims, axis)) = sizes() else {
            return Vec::new();
        };
        let told = self.listed(1, "split");
        let told = told.filter(|sizes| sizes.len() == outputs);
        let given = self.input(1).is_some() || self.attributes.get("split").is_some();
        let equal = dims[axis].by(&Size::known(outputs as i64));
        let each = (0..outputs).map(|i| {
            let mut dims = dims.clone();
            dims[axis] = match (&told, &equal) {
                (Some(sizes), _) => Size::known(sizes[i]),
                (None, Some(equal)) if !given => equal.clone(),
                _ => fresh(),
            };
            self.shaped(dims).unwrap_or_default()
        });
        each.collect()
    }

    pub(super) fn matmul(&self, fresh: Fresh) -> Option<Fact> {
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        let ([before_a @ .., rows, _], [before_b @ .., _, columns]) = (&a[..], &b[..]) else {
            return None;
        };
        let mut dims = broadcast(before_a, before_b, fresh);
        dims.extend([rows.clone(), columns.clone()]);
        self.shaped(dims)
    }

    pub(super) fn gemm(&self) -> Option<Fact> {
        let side = |input, name, untransposed: usize| {
            let transposed = self.attributes.integer(name, 0)? != 0;
            let [first, second] = &self.dims(input)?[..] else {
                return None;
            };
            Some(match (untransposed == 0) != transposed {
                true => first.clone(),
                false => second.clone(),
            })
        };
        let (rows, columns) = (side(0, "transA", 0)?, side(1, "transB", 1)?);
        self.shaped(vec![rows, columns])
    }

    pub(super) fn conv(&self, fresh: Fresh) -> Option<Fact> {
        let (x, weight) = (self.dims(0)?, self.dims(1)?);
        let mut dims = vec![x.first()?.clone(), weight.first()?.clone()];
        dims.extend((2..x.len()).map(|_| fresh()));
        self.shaped(dims)
    }

    pub(super) fn depth_to_space(&self, fresh: Fresh) -> Option<Fact> {
        let block = self.attributes.integer("blocksize", 0)?;
        let [rows, channels, ..] = &self.dims(0)?[..] else {
            return None;
        };
        let channels = channels.by(&Size::known(block.checked_mul(block)?))?;
        self.shaped(vec![rows.clone(), channels, fresh(), fresh()])
    }

    pub(super) fn pool(&self, fresh: Fresh) -> Option<Fact> {
        let x = self.dims(0)?;
        let mut dims = x.get(..2)?.to_vec();
        dims.extend((2..x.len()).map(|_| fresh()));
        self.shaped(dims)
    }

    pub(super) fn transpose(&self) -> Option<Fact> {
        let dims = self.dims(0)?;
        let order = order(self.attributes, dims.len())?;
        self.shaped(order.iter().map(|i| dims[*i].clone()).collect())
    }

    pub(super) fn reshape(&self, fresh: Fresh) -> Option<Fact> {
        let input = self.input(0)?;
        let target = self.input(1)?;
        let Some(sizes) = target.integers() else {
            // How many dimensions there are is known where their list's length is.
            let [rank] = &target.dims.as_ref()?[..] else {
                return None;
            };
            let rank = usize::try_from(rank.number()?).ok();
            let rank = rank.filter(|rank| *rank <= DIMENSIONS)?;
            return self.shaped((0..rank).map(|_| fresh()).collect());
        };
        let copies = self.attributes.integer("allowzero", 0)? == 0;
        let old = input.dims.as_ref();
        // A size that is not known could be -1 or 0 too, which mean others.
        let certain = sizes.iter().all(Option::is_some);
        let mut rest = None;
        let mut dims = Vec::with_capacity(sizes.len());
        for (i, size) in sizes.iter().enumerate() {
            dims.push(match size {
                Some(size) if size.is(-1) => {
                    rest = Some(i);
                    fresh()
                }
                Some(size) if size.is(0) && copies => old
                    .and_then(|old| old.get(i).cloned())
                    .unwrap_or_else(&mut *fresh),
                Some(size) => size.clone(),
                None => fresh(),
            });
        }
        if let (Some(rest), Some(old), true) = (rest, old, certain) {
            let others = dims.iter().enumerate().filter(|(i, _)| *i != rest);
            let others = Size::product(others.map(|(_, size)| size));
            let quotient = Size::product(old).and_then(|all| all.by(&others?));
            dims[rest] = quotient.unwrap_or_else(&mut *fresh);
        }
        self.with(dims)
    }

    pub(super) fn expand(&self, fresh: Fresh) -> Option<Fact> {
        let sizes = self.input(1)?.integers()?.iter();
        let sizes: Vec<Size> = sizes.cloned().collect::<Option<_>>()?;
        let dims = broadcast(self.dims(0)?, &sizes, fresh);
        self.shaped(dims)
    }

    pub(super) fn resize(&self, fresh: Fresh) -> Option<Fact> {
        let dims = self.dims(0)?;
        let (scales, sizes) = (self.input(2), self.input(3));
        let scales = scales
            .and_then(|s| s.floats())
            .filter(|s| s.len() == dims.len());
        let sizes = sizes
            .and_then(|s| s.integers())
            .filter(|s| s.len() == dims.len());
        let each = dims.iter().enumerate().map(|(i, size)| {
            let stays = scales.is_some_and(|scales| scales[i] == 1.0);
            match sizes.and_then(|sizes| sizes[i].clone()) {
                Some(size) => size,
                None if stays => size.clone(),
                None => fresh(),
            }
        });
        self.shaped(each.collect())
    }

    pub(super) fn pad(&self, fresh: Fresh) -> Option<Fact> {
        let dims = self.dims(0)?;
        let rank = dims.len();
        // Those of some axes only are told by another input.
        let all = self.input(3).is_none();
        let pads = self
            .listed(1, "pads")
            .filter(|p| p.len() == 2 * rank && all);
        let each = dims.iter().enumerate().map(|(i, size)| match &pads {
            Some(pads) if pads[i] == 0 && pads[rank + i] == 0 => size.clone(),
            _ => fresh(),
        });
        self.shaped(each.collect())
    }
}

/// Which axis of its operand each axis of a transposed tensor of `rank` dimensions is.
pub(in super::super) fn order(
    attributes: &super::super::details::Attributes,
    rank: usize,
) -> Option<Vec<usize>> {
    let Some(order) = attributes.integers("perm") else {
        let reversed = (0..rank).rev().collect();
        return attributes.get("perm").is_none().then_some(reversed);
    };
    let order: Vec<usize> = order
        .iter()
        .map(|i| place(*i, rank))
        .collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    (sorted.into_iter().eq(0..rank)).then_some(order)
}
