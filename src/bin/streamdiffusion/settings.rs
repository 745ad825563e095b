//! Properties of the element from the command line.

use gst::glib;
use gst::prelude::*;

use crate::failure::Failure;

/// A property and its value, as typed.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Name of the property.
    pub name: String,
    /// Its value as `gst-launch-1.0` takes it.
    pub value: String,
}

impl Setting {
    /// A setting from `NAME=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => Ok(Self {
                name: name.trim().to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected PROPERTY=VALUE, such as steps=2".into()),
        }
    }

    /// A setting of these.
    pub fn new(name: &str, value: impl ToString) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_string(),
        }
    }

    /// Gives `element` the property, if it has it and takes the value.
    pub fn apply(&self, element: &gst::Element) -> Result<(), Failure> {
        let name = &self.name;
        let own = |spec: &glib::ParamSpec| {
            spec.owner_type() == element.type_()
                && spec.flags().contains(glib::ParamFlags::WRITABLE)
        };
        let Some(spec) = element.find_property(name).filter(own) else {
            let specs = element.list_properties();
            let names: Vec<_> = specs.iter().filter(|s| own(s)).map(|s| s.name()).collect();
            return Err(Failure::usage(format!(
                "there is no property {name:?} to set; there are {}",
                names.join(", ")
            )));
        };
        let value = value(&spec, &self.value).ok_or_else(|| {
            Failure::usage(format!(
                "property {name}: {:?} is not a value it takes, expected {}",
                self.value,
                values(&spec)
            ))
        })?;
        element.set_property_from_value(name, &value);
        Ok(())
    }
}

/// The value of a property that `text` stands for, if it is one that the property takes.
fn value(spec: &glib::ParamSpec, text: &str) -> Option<glib::Value> {
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        let range = spec.minimum()..=spec.maximum();
        let value = text.trim().parse().ok();
        value
            .filter(|value| range.contains(value))
            .map(|value: u32| value.to_value())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
        let range = spec.minimum()..=spec.maximum();
        let value = text.trim().parse().ok();
        value
            .filter(|value| range.contains(value))
            .map(|value: u64| value.to_value())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        let range = spec.minimum()..=spec.maximum();
        let value = text.trim().parse().ok();
        value
            .filter(|value| range.contains(value))
            .map(|value: f64| value.to_value())
    } else if spec.value_type() == glib::Type::STRING {
        // GStreamer's own reader would take quotes and backslashes for its syntax.
        Some(text.to_value())
    } else {
        glib::Value::deserialize_with_pspec(text, spec).ok()
    }
}

/// The values that a property takes, in words.
fn values(spec: &glib::ParamSpec) -> String {
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        format!(
            "a whole number from {} to {}",
            spec.minimum(),
            spec.maximum()
        )
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
        format!(
            "a whole number from {} to {}",
            spec.minimum(),
            spec.maximum()
        )
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        format!("a number from {} to {}", spec.minimum(), spec.maximum())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        let nicks: Vec<_> = class.values().iter().map(|value| value.nick()).collect();
        nicks.join(", ")
    } else if spec.value_type() == glib::Type::BOOL {
        "true or false".into()
    } else {
        format!("a {}", spec.value_type())
    }
}

/// Width and height from `WxH`.
pub fn size(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (8..=8192).contains(side));
    text.split_once('x')
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .ok_or_else(|| "expected WIDTHxHEIGHT in pixels, 8 to 8192 each, such as 512x512".into())
}
