//! Group normalisation (arXiv 1803.08494) and what exporters write for it.

use super::{Chain, are_floats};
use crate::model::fuse::details::{Attribute, dtype};
use crate::model::fuse::infer::Known;
use crate::model::fuse::links::Links;
use crate::model::fuse::node::DOMAIN;
use crate::model::fuse::replace::Replacement;
use crate::model::fuse::size::Size;

/// The operator, in ONNX Runtime since 1.15. It takes a picture with its channels last, and scale and offset of each channel
/// in f32; it ends in SiLU (x·σ(x), arXiv 1606.08415) if it is asked to.
const OPERATOR: &str = "GroupNorm";
/// Its threads take two channels of a group each, and its blocks have this many channels at most.
const CHANNELS_OF_A_GROUP: std::ops::RangeInclusive<i64> = 2..=512;
/// From this version of the operator set on, GroupNormalization has a scale and an offset for each channel.
const OF_CHANNELS: i64 = 21;

/// A group normalisation.
struct Norm<'a> {
    picture: &'a str,
    /// What it gives, and the node that does.
    output: &'a str,
    giver: usize,
    /// The nodes that it is made of besides that.
    parts: Vec<usize>,
    groups: i64,
    epsilon: f32,
    scale: &'a str,
    offset: &'a str,
}

/// The same normalisation, with the SiLU that follows, if the node with this number is the middle of one.
pub(super) fn at(links: &Links, number: usize) -> Option<Replacement> {
    let norm = match links.node(number).standard()? {
        "InstanceNormalization" => written_out(links, number),
        "GroupNormalization" => whole(links, number),
        _ => None,
    }?;
    let Norm {
        picture,
        groups,
        scale,
        offset,
        ..
    } = norm;
    let [_, channels, _, _] = links.fact(picture).dims.as_deref()? else {
        return None;
    };
    let channels = channels.number()?;
    let of_a_group = channels.checked_div(groups)?;
    let is_for_channels = |name: &str| {
        let size: Option<i64> = (links.fact(name).dims.as_ref())
            .and_then(|dims| dims.iter().map(Size::number).product());
        size == Some(channels) && links.is_constant(name)
    };
    if of_a_group * groups != channels
        || !CHANNELS_OF_A_GROUP.contains(&of_a_group)
        || of_a_group % 2 != 0
        || !is_for_channels(scale)
        || !is_for_channels(offset)
        || !are_floats(links, [picture, norm.output, scale, offset])
    {
        return None;
    }

    let (output, giver, silu) = match silu(links, norm.output) {
        Some((output, giver, sigmoid)) => (output, giver, Some(sigmoid)),
        None => (norm.output, norm.giver, None),
    };
    let mut absorbed = norm.parts;
    if let Some(sigmoid) = silu {
        absorbed.extend([norm.giver, sigmoid]);
    }
    let mut chain = Chain::new(links, output);
    let shape = chain.node("Constant", "", "channels", |new| {
        new.tensor("value", dtype::I64, 1, &channels.to_le_bytes())
    });
    let [scale, offset] = [(scale, "scale"), (offset, "offset")].map(|(name, role)| {
        let flat = chain.node("Reshape", "", &format!("{role}_as_is"), |new| {
            new.input(name).input(&shape)
        });
        chain.node("Cast", "", role, |new| {
            new.input(&flat).integer("to", dtype::F32)
        })
    });
    let picture = chain.last(picture, "picture");
    let result = chain.node(OPERATOR, DOMAIN, "result", |new| {
        (new.input(&picture).input(&scale).input(&offset))
            .float("epsilon", norm.epsilon)
            .integer("groups", groups)
            .integer("activation", i64::from(silu.is_some()))
            .integer("channels_last", 1)
    });
    chain.end(&result, giver, absorbed)
}

/// The normalisation that the operator of ONNX is.
fn whole<'a>(links: &'a Links, number: usize) -> Option<Norm<'a>> {
    let node = links.node(number);
    let ([picture, scale, offset], [output]) = (&node.inputs[..], &node.outputs[..]) else {
        return None;
    };
    (links.details.opset >= OF_CHANNELS).then_some(Norm {
        picture,
        output,
        giver: number,
        parts: Vec::new(),
        groups: links.attributes(number).integer("num_groups", 0)?,
        epsilon: epsilon(links, number)?,
        scale,
        offset,
    })
}

/// The normalisation around the InstanceNormalization `number`: groups are made instances and pictures again, then come
/// the scale and the offset of each channel.
fn written_out<'a>(links: &'a Links, number: usize) -> Option<Norm<'a>> {
    let node = links.node(number);
    let ([instances, ones, zeros], [normalised]) = (&node.inputs[..], &node.outputs[..]) else {
        return None;
    };
    let before = links.giver(instances)?;
    let (Some("Reshape"), [picture, _]) = (
        links.node(before).standard(),
        &links.node(before).inputs[..],
    ) else {
        return None;
    };
    let dims = links.fact(picture).dims.as_ref()?;
    let [rows, groups, _] = links.fact(instances).dims.as_deref()? else {
        return None;
    };
    let is = |name: &str, wanted: f64| match &links.fact(name).values {
        Known::Floats(values) => values.iter().all(|value| *value == wanted),
        Known::Zeros => wanted == 0.0,
        _ => false,
    };
    // Channels of a group lie side by side, so that instances of as many rows and groups are groups.
    if rows != dims.first()? || !is(ones, 1.0) || !is(zeros, 0.0) {
        return None;
    }
    let after = links.reader(normalised)?;
    let pictures = links.node(after).outputs.first()?;
    if links.node(after).standard() != Some("Reshape")
        || links.fact(pictures).dims.as_ref() != Some(dims)
    {
        return None;
    }
    let (scaled, scale) = operand(links, pictures, "Mul", dims)?;
    let product = links.node(scaled).outputs.first()?;
    let (giver, offset) = operand(links, product, "Add", dims)?;
    Some(Norm {
        picture,
        output: links.node(giver).outputs.first()?,
        giver,
        parts: vec![before, number, after, scaled],
        groups: groups.number()?,
        epsilon: epsilon(links, number)?,
        scale,
        offset,
    })
}

/// The node that does `op` to `name` and a number for each channel, which nothing but it reads, and these numbers.
fn operand<'a>(links: &'a Links, name: &str, op: &str, dims: &[Size]) -> Option<(usize, &'a str)> {
    let reader = links.reader(name)?;
    let (true, [a, b]) = (
        links.node(reader).standard() == Some(op),
        &links.node(reader).inputs[..],
    ) else {
        return None;
    };
    let other = match (a == name, b == name) {
        (true, false) => b,
        (false, true) => a,
        _ => return None,
    };
    // [channels, 1, 1], with as many dimensions before it as the picture has.
    let sizes = links.fact(other).dims.as_ref()?;
    let [before @ .., channels, across, down] = &sizes[..] else {
        return None;
    };
    let is_for_channels = before.len() <= 1
        && before.iter().chain([across, down]).all(|size| size.is(1))
        && Some(channels) == dims.get(1);
    is_for_channels.then_some((reader, other))
}

fn epsilon(links: &Links, number: usize) -> Option<f32> {
    match links.attributes(number).get("epsilon") {
        None => Some(1e-5),
        Some(Attribute::Float(value)) => Some(*value),
        Some(_) => None,
    }
}

/// What the SiLU of `name` gives, the node that gives it and the sigmoid in it, if nothing else reads `name`.
fn silu<'a>(links: &'a Links, name: &str) -> Option<(&'a str, usize, usize)> {
    let readers: Vec<usize> = links.readers(name)?.take(3).collect();
    let [a, b] = readers[..] else {
        return None;
    };
    let op = |number: usize| links.node(number).standard();
    let (sigmoid, product) = match (op(a)?, op(b)?) {
        ("Sigmoid", "Mul") => (a, b),
        ("Mul", "Sigmoid") => (b, a),
        _ => return None,
    };
    let share = links.node(sigmoid).outputs.first()?;
    let factors = &links.node(product).inputs;
    let is_silu = factors.len() == 2
        && factors.contains(share)
        && factors.iter().any(|factor| factor == name)
        && links.reader(share) == Some(product);
    let output = links.node(product).outputs.first()?;
    is_silu.then_some((output, product, sigmoid))
}
