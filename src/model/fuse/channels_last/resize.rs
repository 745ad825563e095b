//! Pictures made larger by repeating their pixels.

use super::{Chain, are_floats};
use crate::model::fuse::details::dtype;
use crate::model::fuse::links::Links;
use crate::model::fuse::replace::Replacement;

/// From this version of the operator set on, the region of interest may be left out.
const WITHOUT_ROI: i64 = 13;

/// The same resizing, if the node with this number repeats pixels across and down by factors that are known.
pub(super) fn at(links: &Links, number: usize) -> Option<Replacement> {
    let node = links.node(number);
    let (Some("Resize"), [picture, _, scales], [output]) =
        (node.standard(), &node.inputs[..], &node.outputs[..])
    else {
        return None;
    };
    let attributes = links.attributes(number);
    let crops =
        attributes.text("coordinate_transformation_mode", "half_pixel")? == "tf_crop_and_resize";
    if links.details.opset < WITHOUT_ROI
        || attributes.text("mode", "nearest") != Some("nearest")
        || attributes.get("axes").is_some()
        || crops
        || links.fact(picture).rank() != Some(4)
        || !are_floats(links, [picture.as_str(), output.as_str()])
        || links.fact(scales).dtype != dtype::F32
    {
        return None;
    }
    let [rows, channels, down, across] = *links.fact(scales).floats()? else {
        return None;
    };
    if (rows, channels) != (1.0, 1.0) {
        return None;
    }
    let factors = [rows, down, across, channels].map(|factor| (factor as f32).to_le_bytes());
    let mut chain = Chain::new(links, output);
    let picture = chain.last(picture, "picture");
    let scales = chain.node("Constant", "", "scales", |new| {
        new.tensor("value", dtype::F32, 4, &factors.concat())
    });
    let result = chain.node("Resize", "", "result", |new| {
        (new.input(&picture).input("").input(&scales)).attributes(&node.attributes)
    });
    chain.end(&result, number, Vec::new())
}
