//! Scaled dot-product attention (arXiv 1706.03762, §3.2.1) in a graph: products of matrices around a softmax, where
//! everything about them can be told.

use super::layout::{Axis, Layout};
use crate::model::fuse::details::dtype;
use crate::model::fuse::infer::shapes::order;
use crate::model::fuse::infer::{Fact, Known};
use crate::model::fuse::links::{Links, STEPS};
use crate::model::fuse::size::Size;

/// From this version of the operator set on, Softmax works along a single axis, and by default the last.
const SOFTMAX_OF_ONE_AXIS: i64 = 13;
/// A factor this close to the usual one is the usual one: exporters round it to f16, some of them twice.
const ROUNDING: f64 = 1.5e-3;

/// An attention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attention {
    /// Its products of matrices and its softmax, nodes by number.
    pub inside: [usize; 3],
    /// Queries `[rows, places, channels]`.
    pub queries: String,
    /// Keys `[rows, places attended to, channels]`.
    pub keys: String,
    /// Values `[rows, places attended to, channels]`.
    pub values: String,
    /// What it gives, `[rows, places, channels]`, and the node that gives it in the graph as it is.
    pub output: String,
    /// See `output`.
    pub giver: usize,
    /// The number of heads that the channels are of.
    pub heads: i64,
    /// What queries have to be multiplied with, unless the factor of products of queries and keys is 1/√(channels of a head).
    pub scale: Option<f32>,
    /// Type of all of them, by its ONNX number.
    pub dtype: i64,
}

/// The attentions of a graph, as many as can be told for sure, in its order.
pub(super) fn find(links: &Links) -> Vec<Attention> {
    let search = Search { links };
    let nodes = 0..links.source.nodes.len();
    nodes.filter_map(|node| search.at(node)).collect()
}

struct Search<'a> {
    links: &'a Links<'a>,
}

/// A tensor that is another one, scaled, reshaped and transposed.
struct Operand<'a> {
    /// The other one.
    base: &'a str,
    /// Its dimensions, `[rows, places, channels]`.
    dims: &'a [Size],
    /// What it is scaled with.
    scale: f64,
    /// How the other's axes lie in it.
    layout: Layout,
}

impl<'a> Search<'a> {
    /// The attention whose softmax is this node.
    fn at(&self, softmax: usize) -> Option<Attention> {
        let node = self.links.node(softmax);
        if node.standard() != Some("Softmax") || !self.is_along_the_last_axis(softmax) {
            return None;
        }
        let (scores, of_scores) = self.scores(node.inputs.first()?)?;
        let [queries, keys] = self.links.node(scores).inputs.get(..2)? else {
            return None;
        };
        let queries = self.operand(queries, [Axis::Place, Axis::Inner])?;
        let keys = self.operand(keys, [Axis::Inner, Axis::Place])?;
        let (product, values) = self.product(node.outputs.first()?)?;
        let values = self.operand(values, [Axis::Place, Axis::Inner])?;
        if values.scale != 1.0 {
            return None;
        }

        // Rows, heads and what is in one are the same for all. Places attended to are, or there would be no product.
        let ([rows, _, channels], [k_rows, _, k_channels], [v_rows, _, v_channels]) =
            (queries.dims, keys.dims, values.dims)
        else {
            return None;
        };
        let heads = queries.layout.heads()?;
        let agree = [k_rows, v_rows].into_iter().all(|other| other == rows)
            && [k_channels, v_channels]
                .into_iter()
                .all(|other| other == channels)
            && [&keys, &values].into_iter().all(|other| {
                other.layout.heads() == Some(heads)
                    && other.layout.leading() == queries.layout.leading()
            });
        let of_one_head = channels.number()?.checked_div(heads)?;
        if !agree || heads < 1 || of_one_head < 1 {
            return None;
        }
        let (giver, output) = self.output(product, &queries)?;
        let kind = self.links.fact(queries.base).dtype;
        let same = [keys.base, values.base, output];
        if !matches!(kind, dtype::F16 | dtype::F32)
            || same
                .into_iter()
                .any(|name| self.links.fact(name).dtype != kind)
        {
            return None;
        }
        let scale = of_scores * queries.scale * keys.scale;
        let usual = (of_one_head as f64).sqrt().recip();
        let is_usual = (scale / usual - 1.0).abs() <= ROUNDING;
        // A factor of 0 means the usual one to the operator, and it looks for the largest score before it scales.
        if !scale.is_finite() || scale as f32 <= 0.0 {
            return None;
        }
        Some(Attention {
            inside: [scores, softmax, product],
            queries: queries.base.to_owned(),
            keys: keys.base.to_owned(),
            values: values.base.to_owned(),
            output: output.to_owned(),
            giver,
            heads,
            scale: (!is_usual).then_some((scale / usual) as f32),
            dtype: kind,
        })
    }

    /// Whether the softmax `node` makes what is along the last axis add up to 1.
    fn is_along_the_last_axis(&self, node: usize) -> bool {
        let default = match self.links.details.opset >= SOFTMAX_OF_ONE_AXIS {
            true => -1,
            false => 1,
        };
        let axis = self.links.attributes(node).integer("axis", default);
        let rank = self.fact_of_input(node, 0).and_then(Fact::rank);
        axis == Some(-1) || (axis.is_some() && axis == rank.map(|rank| rank as i64 - 1))
    }

    fn fact_of_input(&self, node: usize, input: usize) -> Option<&Fact> {
        let name = self.links.node(node).inputs.get(input)?;
        Some(self.links.fact(name))
    }

    /// The product of matrices that the softmax's input `name` is, and the factor between them.
    fn scores(&self, mut name: &'a str) -> Option<(usize, f64)> {
        let mut scale = 1.0;
        for _ in 0..STEPS {
            let giver = self.links.giver(name)?;
            let node = self.links.node(giver);
            match node.standard()? {
                "MatMul" => return Some((giver, scale)),
                "Add" => name = self.unmasked(giver)?,
                "Cast" if self.is_float(name) => name = node.inputs.first()?,
                _ => {
                    let (of, factor) = self.scaled(giver)?;
                    name = of;
                    scale *= factor;
                }
            }
        }
        None
    }

    fn is_float(&self, name: &str) -> bool {
        matches!(self.links.fact(name).dtype, dtype::F16 | dtype::F32)
    }

    /// The operand of the sum `node` to which nothing is added.
    fn unmasked(&self, node: usize) -> Option<&'a str> {
        let [a, b] = &self.links.node(node).inputs[..] else {
            return None;
        };
        let is_zero = |name: &str| match &self.links.fact(name).values {
            Known::Zeros => true,
            Known::Floats(values) => values.iter().all(|v| *v == 0.0),
            _ => false,
        };
        let name = match (is_zero(a), is_zero(b)) {
            (false, true) => a,
            (true, false) => b,
            _ => return None,
        };
        // Zeros might make it larger.
        let output = self.links.node(node).outputs.first()?;
        let dims = |name: &str| self.links.fact(name).dims.as_ref();
        (dims(output).is_some() && dims(output) == dims(name)).then_some(name)
    }

    /// What `node` scales, and with what; 1 for a node that only passes its input on.
    fn scaled(&self, node: usize) -> Option<(&'a str, f64)> {
        let inputs = &self.links.node(node).inputs;
        let float = |name: &String| self.links.fact(name).float();
        let op = self.links.node(node).standard()?;
        let (name, factor) = match (op, &inputs[..]) {
            ("Identity", [of]) => (of, 1.0),
            ("Mul", [a, b]) => match (float(a), float(b)) {
                (None, Some(factor)) => (a, factor),
                (Some(factor), None) => (b, factor),
                _ => return None,
            },
            ("Div", [of, by]) => (of, float(by)?.recip()),
            _ => return None,
        };
        // A factor with dimensions would add them.
        let output = self.links.node(node).outputs.first()?;
        let rank = |name: &str| self.links.fact(name).rank();
        (rank(output).is_some() && rank(output) == rank(name)).then_some((name, factor))
    }

    /// What `name` is a view of, with `last` as its last two axes. The farthest that will do: the nearer ones may be views
    /// themselves.
    fn operand(&self, name: &'a str, last: [Axis; 2]) -> Option<Operand<'a>> {
        // From the operand to what it is made of: names, and the nodes between them.
        let (mut names, mut nodes, mut scales) = (vec![name], Vec::new(), vec![1.0]);
        let mut name = name;
        while let Some(giver) = self.links.giver(name)
            && names.len() < STEPS
        {
            let node = self.links.node(giver);
            let (of, factor) = match node.standard() {
                Some("Reshape" | "Transpose") => (node.inputs.first().map(String::as_str), 1.0),
                Some("Cast") if self.keeps_type(giver) => {
                    (node.inputs.first().map(String::as_str), 1.0)
                }
                _ => match self.scaled(giver) {
                    Some((of, factor)) => (Some(of), factor),
                    None => break,
                },
            };
            let Some(of) = of else { break };
            names.push(of);
            nodes.push(giver);
            scales.push(scales[scales.len() - 1] * factor);
            name = of;
        }
        (0..names.len()).rev().find_map(|i| {
            let dims = self.links.fact(names[i]).dims.as_ref()?;
            let mut layout = Layout::of(dims)?;
            for node in nodes[..i].iter().rev() {
                layout = self.through(*node, &layout)?;
            }
            layout.is_by_head(last).then(|| Operand {
                base: names[i],
                dims,
                scale: scales[i],
                layout,
            })
        })
    }

    /// Whether the cast `node` is from a type to the same.
    fn keeps_type(&self, node: usize) -> bool {
        let from = self.fact_of_input(node, 0).map(|fact| fact.dtype);
        from.is_some_and(|from| {
            from != 0 && self.links.attributes(node).integer("to", 0) == Some(from)
        })
    }

    /// The layout of what `node` makes of a tensor of layout `layout`.
    fn through(&self, node: usize, layout: &Layout) -> Option<Layout> {
        let of = self.links.node(node);
        match of.standard()? {
            "Transpose" => {
                let order = order(self.links.attributes(node), layout.groups().len())?;
                layout.transposed(&order)
            }
            "Reshape" => {
                let dims = self.links.fact(of.outputs.first()?).dims.as_ref()?;
                layout.reshaped(dims)
            }
            _ => Some(layout.clone()),
        }
    }

    /// The product of matrices that reads the softmax's output `name`, and the name of its other operand.
    fn product(&self, mut name: &'a str) -> Option<(usize, &'a str)> {
        for _ in 0..STEPS {
            let reader = self.links.reader(name)?;
            let node = self.links.node(reader);
            match (node.standard()?, &node.inputs[..]) {
                ("MatMul", [probabilities, values]) if probabilities == name && values != name => {
                    return Some((reader, values));
                }
                ("Identity", _) => {}
                ("Cast", _) if self.is_float(node.outputs.first()?) => {}
                _ => return None,
            }
            name = node.outputs.first()?;
        }
        None
    }

    /// The tensor `[rows, places, channels]` that becomes of the product of matrices `product`, and what gives it.
    fn output(&self, product: usize, queries: &Operand) -> Option<(usize, &'a str)> {
        let mut layout = Layout::made_of(queries.layout.groups().to_vec());
        let mut giver = product;
        for _ in 0..STEPS {
            let name = self.links.node(giver).outputs.first()?;
            if layout.is_by_place() {
                return Some((giver, name));
            }
            let reader = self.links.reader(name)?;
            match self.links.node(reader).standard()? {
                "Reshape" | "Transpose" | "Identity" => {}
                "Cast" if self.keeps_type(reader) => {}
                _ => return None,
            }
            layout = self.through(reader, &layout)?;
            giver = reader;
        }
        None
    }
}
