//! Gated linear units with GELU (GEGLU, arXiv 2002.05202): a sum of a matrix product and a bias is halved, and the first half
//! multiplied with GELU(x) = x·(1 + erf(x/√2))/2 of the second. Exporters write that in eight operators, each a pass over
//! the widest tensor of a transformer block.

use super::details::{DIMENSIONS, dtype};
use super::links::{Links, STEPS};
use super::node::{DOMAIN, NewNode};
use super::replace::Replacement;

/// The operator, in ONNX Runtime since 1.15: `[rows, places, 2·width]` and a bias become `[rows, places, width]`.
const OPERATOR: &str = "BiasSplitGelu";
/// The widths that it knows: four times the channels of the transformer blocks of Stable Diffusion.
const WIDTHS: [i64; 3] = [1280, 2560, 5120];
/// Factors are rounded to f16.
const ROUNDING: f64 = 1.5e-3;

/// What takes the place of the gated linear units of a graph.
pub(super) fn find(links: &Links) -> Vec<Replacement> {
    let nodes = 0..links.source.nodes.len();
    nodes.filter_map(|node| at(links, node)).collect()
}

/// A product, taken apart.
#[derive(Default)]
struct Product<'a> {
    /// Of its numbers.
    number: f64,
    tensors: Vec<&'a str>,
    /// The multiplications but the last.
    inside: Vec<usize>,
}

/// The unit that the error function with this number is in.
fn at(links: &Links, number: usize) -> Option<Replacement> {
    let node = links.node(number);
    let (Some("Erf"), [scaled], [error]) = (node.standard(), &node.inputs[..], &node.outputs[..])
    else {
        return None;
    };
    let (scaling, right, root) = scaled_by(links, scaled)?;
    let is = |found: f64, wanted: f64| (found / wanted - 1.0).abs() <= ROUNDING;
    if !is(root, std::f64::consts::FRAC_1_SQRT_2) {
        return None;
    }
    let above = links.reader(error)?;
    let [a, b] = &links.node(above).inputs[..] else {
        return None;
    };
    let one = if a == error { b } else { a };
    if links.node(above).standard() != Some("Add") || !is(number_of(links, one)?, 1.0) {
        return None;
    }

    // All that is multiplied with it, in whatever order.
    let above_zero = links.node(above).outputs.first()?.as_str();
    let mut giver = above;
    let mut name = above_zero;
    for _ in 0..STEPS {
        match links.reader(name) {
            Some(reader) if links.node(reader).standard() == Some("Mul") => {
                giver = reader;
                name = links.node(reader).outputs.first()?;
            }
            _ => break,
        }
    }
    let mut product = Product {
        number: 1.0,
        ..Product::default()
    };
    take_apart(links, giver, &mut product, 0)?;
    let others: Vec<_> = (product.tensors.iter().copied())
        .filter(|name| *name != above_zero)
        .collect();
    let left = match others[..] {
        [left, other] if other == right => left,
        [other, left] if other == right => left,
        _ => return None,
    };
    if product.tensors.len() != 3 || !is(product.number, 0.5) {
        return None;
    }

    let (halving, sum, width) = halves(links, left, right)?;
    let adding = links.giver(sum)?;
    let (Some("Add"), [a, b]) = (
        links.node(adding).standard(),
        &links.node(adding).inputs[..],
    ) else {
        return None;
    };
    let (of, bias) = if links.is_constant(b) { (a, b) } else { (b, a) };
    let [.., last] = links.fact(bias).dims.as_deref()? else {
        return None;
    };
    let kind = links.fact(of).dtype;
    let fits = links.fact(bias).rank() == Some(1)
        && last.is(2 * width)
        && links.is_constant(bias)
        && links.fact(of).rank() == Some(3)
        && links.fact(of).dims == links.fact(sum).dims
        && matches!(kind, dtype::F16 | dtype::F32)
        && [bias, name]
            .iter()
            .all(|name| links.fact(name).dtype == kind);
    if !fits || !WIDTHS.contains(&width) {
        return None;
    }
    let node = NewNode::new(OPERATOR, DOMAIN, &format!("{name}.gate"))
        .input(of)
        .input(bias)
        .output(name);
    let mut absorbed = product.inside;
    absorbed.extend(halving);
    absorbed.extend([number, scaling, above, adding]);
    Some(Replacement {
        giver,
        absorbed,
        nodes: vec![node.build()],
    })
}

/// What is multiplied by the node `giver`, and by those in it that nothing else reads.
fn take_apart<'a>(
    links: &'a Links,
    giver: usize,
    product: &mut Product<'a>,
    depth: usize,
) -> Option<()> {
    let factors = &links.node(giver).inputs;
    let too_much = depth > DIMENSIONS || product.tensors.len() > 3 || factors.len() != 2;
    if links.node(giver).standard() != Some("Mul") || too_much {
        return None;
    }
    for factor in factors {
        if let Some(number) = number_of(links, factor) {
            product.number *= number;
            continue;
        }
        match links.giver(factor) {
            Some(inside)
                if links.node(inside).standard() == Some("Mul")
                    && links.reader(factor) == Some(giver) =>
            {
                product.inside.push(inside);
                take_apart(links, inside, product, depth + 1)?;
            }
            _ => product.tensors.push(factor),
        }
    }
    Some(())
}

/// The value of a constant that is a single number and does not add dimensions to what it is multiplied with.
fn number_of(links: &Links, name: &str) -> Option<f64> {
    let fact = links.fact(name);
    fact.float()
        .filter(|_| fact.rank().is_some_and(|rank| rank <= 1))
}

/// The node that gives `name`, a tensor times a number; that tensor, and the number.
fn scaled_by<'a>(links: &'a Links, name: &str) -> Option<(usize, &'a str, f64)> {
    let giver = links.giver(name)?;
    let node = links.node(giver);
    let [a, b] = &node.inputs[..] else {
        return None;
    };
    Some(match node.standard()? {
        "Div" => (giver, a, number_of(links, b)?.recip()),
        "Mul" => match number_of(links, b) {
            Some(number) => (giver, a, number),
            None => (giver, b, number_of(links, a)?),
        },
        _ => return None,
    })
}

/// The nodes that take `left` and `right` as the first and the second half of a tensor along its last axis, that tensor, of
/// which nothing else is read, and the width of a half.
fn halves<'a>(links: &'a Links, left: &str, right: &str) -> Option<(Vec<usize>, &'a str, i64)> {
    let givers = [links.giver(left)?, links.giver(right)?];
    let [first, second] = givers.map(|giver| links.node(giver));
    let whole = first.inputs.first()?;
    let [.., last] = links.fact(whole).dims.as_deref()? else {
        return None;
    };
    let rank = links.fact(whole).rank()? as i64;
    let width = last.number().filter(|width| width % 2 == 0)? / 2;
    let is_half = |name: &str| {
        let dims = links.fact(name).dims.as_deref();
        matches!(dims, Some([.., last]) if last.is(width))
            && links.fact(name).rank() == Some(rank as usize)
    };
    let is_last = |axis: i64| axis == -1 || axis == rank - 1;
    let (nodes, readers) = match (first.standard()?, second.standard()?) {
        ("Split", "Split") if givers[0] == givers[1] => {
            let axis = links.attributes(givers[0]).integer("axis", 0)?;
            let in_order =
                first.outputs.len() == 2 && first.outputs[0] == left && first.outputs[1] == right;
            (is_last(axis) && in_order).then(|| (vec![givers[0]], 1))?
        }
        ("Slice", "Slice") if second.inputs.first() == Some(whole) => {
            let numbers = |i: usize, node: &crate::model::scan::Node| match node.inputs.get(i) {
                Some(name) => links.fact(name).numbers(),
                None => None,
            };
            let is_from = |node, start: i64| {
                numbers(1, node) == Some(vec![start])
                    && numbers(3, node).is_some_and(|axes| axes.len() == 1 && is_last(axes[0]))
                    && node
                        .inputs
                        .get(4)
                        .is_none_or(|step| links.fact(step).numbers() == Some(vec![1]))
            };
            (is_from(first, 0) && is_from(second, width)).then(|| (givers.to_vec(), 2))?
        }
        _ => return None,
    };
    let read = links.readers(whole)?;
    (is_half(left) && is_half(right) && read.take(3).count() == readers)
        .then_some((nodes, whole, width))
}
