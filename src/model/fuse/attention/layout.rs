//! How the axes of an attention lie in a tensor that is a reshaped or transposed one of rows, places and channels.

use crate::model::fuse::size::Size;

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Rows of a call.
    Row,
    /// Places: of a picture, or of a text.
    Place,
    /// Channels of all heads, head by head.
    Channel,
    /// Heads.
    Head,
    /// Channels of one head.
    Inner,
}

/// The dimensions of a tensor: which axes each is made of, outermost first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    groups: Vec<Vec<(Axis, Size)>>,
}

impl Layout {
    /// That of a tensor `[rows, places, channels]`.
    pub fn of(dims: &[Size]) -> Option<Self> {
        let [rows, places, channels] = dims else {
            return None;
        };
        let axes = [
            (Axis::Row, rows),
            (Axis::Place, places),
            (Axis::Channel, channels),
        ];
        let groups = axes.map(|(axis, size)| vec![(axis, size.clone())]);
        Some(Self {
            groups: groups.into(),
        })
    }

    /// That of a tensor whose dimensions are made of `groups`.
    pub fn made_of(groups: Vec<Vec<(Axis, Size)>>) -> Self {
        Self { groups }
    }

    /// The axes that make up each dimension.
    pub fn groups(&self) -> &[Vec<(Axis, Size)>] {
        &self.groups
    }

    /// The same, transposed: axis i is the old axis `order[i]`.
    pub fn transposed(&self, order: &[usize]) -> Option<Self> {
        let groups = order.iter().map(|i| self.groups.get(*i).cloned());
        Some(Self {
            groups: groups.collect::<Option<_>>()?,
        })
    }

    /// The same, reshaped to `dims`; `None` unless every dimension is a run of whole axes. Channels are taken apart, once,
    /// into heads and the channels of each.
    pub fn reshaped(&self, dims: &[Size]) -> Option<Self> {
        let mut axes: Vec<(Axis, Size)> = self.groups.concat();
        axes.reverse();
        let mut groups = Vec::with_capacity(dims.len());
        for size in dims {
            let mut group = Vec::new();
            let mut product = Size::known(1);
            // An axis of size 1 goes with the dimension of size 1 that is next.
            while product != *size || (group.is_empty() && axes.last().is_some_and(|a| a.1.is(1))) {
                let (axis, length) = axes.pop()?;
                let together = product.times(&length)?;
                let missing = size.by(&product)?;
                if axis == Axis::Channel && missing != length && together != *size {
                    let inner = length.by(&missing)?;
                    axes.push((Axis::Inner, inner));
                    group.push((Axis::Head, missing));
                    product = size.clone();
                    continue;
                }
                group.push((axis, length));
                product = together;
            }
            groups.push(group);
        }
        // Those of size 1 that are left belong to the last dimension.
        while let Some(axis) = axes.pop() {
            if !axis.1.is(1) {
                return None;
            }
            groups.last_mut()?.push(axis);
        }
        Some(Self { groups })
    }

    /// The layout in which one head is a head: channels that were never taken apart are those of a single one.
    fn with_heads(&self) -> Vec<Vec<Axis>> {
        let has_head = self
            .groups
            .iter()
            .flatten()
            .any(|(axis, _)| *axis == Axis::Head);
        let axis = |(axis, _): &(Axis, Size)| match axis {
            Axis::Channel if !has_head => Axis::Inner,
            axis => *axis,
        };
        let groups = self.groups.iter();
        groups
            .map(|group| group.iter().map(axis).collect())
            .collect()
    }

    /// Whether it is `[rows, heads, …]` or `[rows·heads, …]` and then the two axes `last`.
    pub fn is_by_head(&self, last: [Axis; 2]) -> bool {
        let groups = self.with_heads();
        let [leading @ .., a, b] = &groups[..] else {
            return false;
        };
        let has_head = groups.iter().flatten().any(|axis| *axis == Axis::Head);
        let leads = match has_head {
            true => leading.concat() == [Axis::Row, Axis::Head],
            false => leading.concat() == [Axis::Row],
        };
        leads && (a[..] == last[..1]) && (b[..] == last[1..])
    }

    /// The axes of each dimension but the last two.
    pub fn leading(&self) -> Vec<Vec<Axis>> {
        let mut groups = self.with_heads();
        groups.truncate(groups.len().saturating_sub(2));
        groups
    }

    /// Whether it is `[rows, places, channels]` again.
    pub fn is_by_place(&self) -> bool {
        let groups = self.with_heads();
        let [rows, places, channels] = &groups[..] else {
            return false;
        };
        rows[..] == [Axis::Row]
            && places[..] == [Axis::Place]
            && (channels[..] == [Axis::Head, Axis::Inner] || channels[..] == [Axis::Inner])
    }

    /// The number of heads.
    pub fn heads(&self) -> Option<i64> {
        let mut axes = self.groups.iter().flatten();
        match axes.find(|(axis, _)| *axis == Axis::Head) {
            Some((_, heads)) => heads.number(),
            None => Some(1),
        }
    }
}
