//! Sizes that are known, or known to be equal: a whole number times sizes that have a name.

use super::details::DIMENSIONS;

/// The size of a dimension: a factor and named sizes, multiplied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Size {
    factor: i64,
    /// Sorted.
    names: Vec<u32>,
}

impl Size {
    /// The number of rows that a graph is run with, which all its inputs have in common.
    pub const ROWS: u32 = 0;

    /// A size that is only known by a name, not 0.
    pub fn named(name: u32) -> Self {
        Self {
            factor: 1,
            names: vec![name],
        }
    }

    /// A number.
    pub fn known(factor: i64) -> Self {
        Self {
            factor,
            names: Vec::new(),
        }
    }

    /// The number that it is, if it is known.
    pub fn number(&self) -> Option<i64> {
        self.names.is_empty().then_some(self.factor)
    }

    /// Whether the two are equal; `None` if that cannot be told. Named sizes are above 0.
    pub fn equals(&self, other: &Self) -> Option<bool> {
        match (self.number(), other.number()) {
            (Some(a), Some(b)) => Some(a == b),
            (Some(number), None) if other.factor > 0 && number <= 0 => Some(false),
            (None, Some(number)) if self.factor > 0 && number <= 0 => Some(false),
            _ => (self == other).then_some(true),
        }
    }

    /// Whether it is the number `value`.
    pub fn is(&self, value: i64) -> bool {
        self.number() == Some(value)
    }

    /// Their product, unless it becomes unwieldy.
    pub fn times(&self, other: &Self) -> Option<Self> {
        let mut names = [&self.names[..], &other.names].concat();
        names.sort_unstable();
        (names.len() <= DIMENSIONS).then_some(Self {
            factor: self.factor.checked_mul(other.factor)?,
            names,
        })
    }

    /// Their quotient, if it has no remainder whatever the named sizes are.
    pub fn by(&self, other: &Self) -> Option<Self> {
        if self.factor.checked_rem(other.factor)? != 0 {
            return None;
        }
        let mut names = self.names.clone();
        for name in &other.names {
            let at = names.binary_search(name).ok()?;
            names.remove(at);
        }
        Some(Self {
            factor: self.factor.checked_div(other.factor)?,
            names,
        })
    }

    /// The product of `sizes`.
    pub fn product<'a>(sizes: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut sizes = sizes.into_iter();
        sizes.try_fold(Self::known(1), |product, size| product.times(size))
    }
}
