//! Values: constants, sizes, and what is worked out from them.

use super::super::details::{Attribute, SMALL, dtype};
use super::super::size::Size;
use super::{Case, Fact, Fresh, Known, rounded};

impl Case<'_, '_> {
    pub(super) fn constant(&self) -> Option<Fact> {
        let get = |name| self.attributes.get(name);
        if let Some(Attribute::Tensor(tensor)) = get("value") {
            return Some(Fact::of(tensor));
        }
        let of = |dtype, dims: Vec<Size>, values| {
            Some(Fact {
                dtype,
                dims: Some(dims),
                values,
            })
        };
        if let Some(Attribute::Integer(value)) = get("value_int") {
            let values = vec![Some(Size::known(*value))];
            return of(dtype::I64, Vec::new(), Known::Integers(values));
        }
        if let Some(Attribute::Float(value)) = get("value_float") {
            let values = vec![f64::from(*value)];
            return of(dtype::F32, Vec::new(), Known::Floats(values));
        }
        if let Some(values) = self.attributes.integers("value_ints")
            && values.len() <= SMALL
        {
            let dims = vec![Size::known(values.len() as i64)];
            let values = values.iter().map(|v| Some(Size::known(*v)));
            return of(dtype::I64, dims, Known::Integers(values.collect()));
        }
        None
    }

    pub(super) fn shape(&self) -> Option<Fact> {
        let dims = self.input(0)?.dims.as_ref()?;
        let rank = dims.len() as i64;
        let bound = |name, default| {
            let at = self.attributes.integer(name, default)?;
            let from_start = if at < 0 { at.checked_add(rank)? } else { at };
            Some(from_start.clamp(0, rank) as usize)
        };
        let (start, end) = (bound("start", 0)?, bound("end", rank)?);
        let dims = dims.get(start..end.max(start))?;
        Some(integers(1, dims.iter().cloned().map(Some).collect()))
    }

    pub(super) fn cast(&self) -> Option<Fact> {
        let (input, to) = (self.input(0)?, self.attributes.integer("to", 0)?);
        let float = |value: f64| rounded(value, to);
        let values = match (&input.values, to) {
            (Known::Integers(values), dtype::I64) => Known::Integers(values.clone()),
            (Known::Integers(values), dtype::I32) => {
                let fits = |size: &Size| size.number().is_none_or(|n| i32::try_from(n).is_ok());
                let values = values.iter().cloned();
                Known::Integers(values.map(|v| v.filter(fits)).collect())
            }
            (Known::Integers(_), _) => {
                let floats = input.numbers().unwrap_or_default().into_iter();
                let floats = floats.map(|n| float(n as f64)).collect::<Option<Vec<_>>>();
                floats
                    .filter(|floats| !floats.is_empty())
                    .map_or(Known::Nothing, Known::Floats)
            }
            (Known::Floats(values), _) => {
                let floats: Option<_> = values.iter().map(|v| float(*v)).collect();
                floats.map_or(Known::Nothing, Known::Floats)
            }
            (Known::Zeros, dtype::F16 | dtype::F32 | dtype::F64) => Known::Zeros,
            _ => Known::Nothing,
        };
        Some(Fact {
            dtype: to,
            dims: input.dims.clone(),
            values,
        })
    }

    pub(super) fn constant_of_shape(&self, fresh: Fresh) -> Option<Fact> {
        let list = || {
            let length = self.input(0)?.numbers()?;
            let [length] = length[..] else {
                return None;
            };
            let Some(Attribute::Tensor(tensor)) = self.attributes.get("value") else {
                return None;
            };
            let fact = Fact::of(tensor);
            let [value] = fact.integers()? else {
                return None;
            };
            let length = usize::try_from(length).ok().filter(|n| *n <= SMALL)?;
            Some(integers(1, vec![value.clone(); length]))
        };
        if let Some(list) = list() {
            return Some(list);
        }
        let (of, zero) = match self.attributes.get("value") {
            None => (dtype::F32, true),
            Some(Attribute::Tensor(tensor)) => {
                let fact = Fact::of(tensor);
                (tensor.dtype, fact.float() == Some(0.0))
            }
            Some(_) => return None,
        };
        let sizes = self.input(0)?.integers()?.iter().cloned();
        Some(Fact {
            dtype: of,
            dims: Some(sizes.map(|size| size.unwrap_or_else(&mut *fresh)).collect()),
            values: if zero { Known::Zeros } else { Known::Nothing },
        })
    }

    pub(super) fn equal(&self, fresh: Fresh) -> Option<Fact> {
        let (a, b) = (self.input(0)?, self.input(1)?);
        let values = match (a.integers(), b.integers()) {
            (Some(a), Some(b)) => pairs(a, b).map(|pairs| {
                let same = pairs.map(|(a, b)| a.as_ref()?.equals(b.as_ref()?));
                let same = same.map(|same| same.map(|same| Size::known(same.into())));
                Known::Integers(same.collect())
            }),
            _ => None,
        };
        Some(Fact {
            dtype: dtype::BOOL,
            dims: Some(broadcast(a.dims.as_ref()?, b.dims.as_ref()?, fresh)),
            values: values.unwrap_or_default(),
        })
    }

    /// Where: values of one or the other.
    pub(super) fn chosen(&self, fresh: Fresh) -> Option<Fact> {
        let (which, a, b) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let values = match (which.integers(), a.integers(), b.integers()) {
            (Some(which), Some(a), Some(b)) if a.len() == which.len() && b.len() == a.len() => {
                let both = which.iter().zip(a.iter().zip(b));
                let each = both.map(|(which, (a, b))| match which.as_ref()?.number()? {
                    0 => b.clone(),
                    _ => a.clone(),
                });
                Known::Integers(each.collect())
            }
            _ => Known::Nothing,
        };
        let dims = broadcast(a.dims.as_ref()?, b.dims.as_ref()?, fresh);
        Some(Fact {
            dtype: a.dtype,
            dims: Some(broadcast(which.dims.as_ref()?, &dims, fresh)),
            values,
        })
    }

    pub(super) fn arithmetic(&self, op: &str, fresh: Fresh) -> Option<Fact> {
        let first = self.input(0)?;
        let Some(second) = self.input(1) else {
            let values = match first.floats() {
                Some(values) => floats(values, &[0.0], first.dtype, |x, _| match op {
                    "Sqrt" => x.sqrt(),
                    "Reciprocal" => x.recip(),
                    _ => f64::NAN,
                }),
                None => Known::Nothing,
            };
            return Some(Fact {
                values,
                ..first.clone()
            });
        };
        let values = match (&first.values, &second.values) {
            (Known::Integers(a), Known::Integers(b)) => sizes(op, a, b),
            (Known::Floats(a), Known::Floats(b)) => floats(a, b, first.dtype, |x, y| match op {
                "Add" => x + y,
                "Sub" => x - y,
                "Mul" => x * y,
                "Div" => x / y,
                "Pow" => x.powf(y),
                _ => f64::NAN,
            }),
            (Known::Zeros, Known::Floats(by)) | (Known::Floats(by), Known::Zeros)
                if op == "Mul" && by.iter().all(|x| x.is_finite()) =>
            {
                Known::Zeros
            }
            (Known::Zeros, Known::Zeros) if op == "Mul" || op == "Add" => Known::Zeros,
            _ => Known::Nothing,
        };
        let dims = match (&first.dims, &second.dims) {
            (Some(a), Some(b)) => Some(broadcast(a, b, fresh)),
            _ => None,
        };
        // Operands of as many values may be broadcast too, to more of them.
        let all = dims
            .as_ref()
            .and_then(Size::product)
            .and_then(|n| n.number());
        let values = match values {
            Known::Integers(list) if all != Some(list.len() as i64) => Known::Nothing,
            Known::Floats(list) if all != Some(list.len() as i64) => Known::Nothing,
            values => values,
        };
        Some(Fact {
            dtype: first.dtype,
            dims,
            values,
        })
    }
}

/// A list of whole numbers, with `rank` dimensions: one or none.
pub(super) fn integers(rank: usize, values: Vec<Option<Size>>) -> Fact {
    let length = Size::known(values.len() as i64);
    Fact {
        dtype: dtype::I64,
        dims: Some(vec![length; rank]),
        values: Known::Integers(values),
    }
}

/// Dimensions of the result of an operator that broadcasts its operands.
pub(super) fn broadcast(a: &[Size], b: &[Size], fresh: Fresh) -> Vec<Size> {
    let rank = a.len().max(b.len());
    let one = Size::known(1);
    let at = |dims: &[Size], i: usize| {
        let from_start = (i + dims.len()).checked_sub(rank);
        from_start.map_or(one.clone(), |i| dims[i].clone())
    };
    let each = (0..rank).map(|i| {
        let (a, b) = (at(a, i), at(b, i));
        match () {
            _ if a == b || b.is(1) => a,
            _ if a.is(1) => b,
            // Where one is a number above 1, the other is that number or 1.
            _ if a.number().is_some() => a,
            _ if b.number().is_some() => b,
            _ => fresh(),
        }
    });
    each.collect()
}

/// Operands of the same length, or of which one has a single value, side by side.
fn pairs<'a, T>(a: &'a [T], b: &'a [T]) -> Option<impl Iterator<Item = (&'a T, &'a T)>> {
    let length = match (a.len(), b.len()) {
        (a, b) if a == b => a,
        (1, n) | (n, 1) => n,
        _ => return None,
    };
    let a = a.iter().cycle().take(length);
    Some(a.zip(b.iter().cycle()))
}

fn sizes(op: &str, a: &[Option<Size>], b: &[Option<Size>]) -> Known {
    let result = |(a, b): (&Option<Size>, &Option<Size>)| {
        let (a, b) = (a.as_ref()?, b.as_ref()?);
        match (op, a.number(), b.number()) {
            ("Mul", ..) => a.times(b),
            // Whole numbers are divided towards 0.
            ("Div", Some(a), Some(b)) => a.checked_div(b).map(Size::known),
            ("Div", ..) => a.by(b),
            ("Add", Some(a), Some(b)) => a.checked_add(b).map(Size::known),
            ("Sub", Some(a), Some(b)) => a.checked_sub(b).map(Size::known),
            _ => None,
        }
    };
    match pairs(a, b) {
        Some(pairs) => Known::Integers(pairs.map(result).collect()),
        None => Known::Nothing,
    }
}

fn floats(a: &[f64], b: &[f64], dtype: i64, result: impl Fn(f64, f64) -> f64) -> Known {
    let Some(pairs) = pairs(a, b) else {
        return Known::Nothing;
    };
    let values = pairs.map(|(a, b)| rounded(result(*a, *b), dtype));
    match values.collect::<Option<Vec<_>>>() {
        Some(values) if values.iter().all(|v| v.is_finite()) => Known::Floats(values),
        _ => Known::Nothing,
    }
}
