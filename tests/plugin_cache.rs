//! `docs/plugins/gst_plugins_cache.json` is what the plugin says of itself, in the form that GStreamer's documentation
//! tools read (`gst-plugins-doc-cache-generator`, hotdoc).
//!
//! `UPDATE_DOCS=1 cargo test --test plugin_cache` writes it anew.

mod common;

use std::collections::BTreeMap;

use gst::glib;
use gst::glib::translate::*;
use gst::prelude::*;
use serde_json::{Map, Value, json};

/// Enumerations and flags that are described beside the elements, by the name of their type.
type OtherTypes = BTreeMap<String, Value>;

/// The plugin as GStreamer loads it, not the copy in this program.
fn load() -> gst::Plugin {
    gst::init().unwrap();
    gst::Plugin::load_file(common::plugin()).unwrap()
}

fn describe(plugin: &gst::Plugin) -> Value {
    let name = plugin.plugin_name().to_string();
    let registry = gst::Registry::get();
    let mut other_types = OtherTypes::new();
    let mut elements = Map::new();
    let mut tracers = Map::new();
    for feature in registry.features_by_plugin(&name) {
        match feature.downcast_ref::<gst::ElementFactory>() {
            Some(factory) => {
                let described = element(factory, &mut other_types);
                elements.insert(feature.name().into(), described);
            }
            None => {
                tracers.insert(feature.name().into(), json!({}));
            }
        }
    }
    json!({
        &name: {
            "description": plugin.description().as_str(),
            "elements": elements,
            "filename": format!("gst{name}"),
            "license": plugin.license().as_str(),
            "other-types": other_types,
            "package": plugin.package().as_str(),
            "source": plugin.source().as_str(),
            "tracers": tracers,
            "url": plugin.origin().as_str(),
        }
    })
}

fn element(factory: &gst::ElementFactory, other_types: &mut OtherTypes) -> Value {
    let element = factory.create().build().unwrap();
    let own = element.type_();
    let mut described = Map::new();
    for key in factory.metadata_keys() {
        let value = factory.metadata(&key).unwrap();
        described.insert(key.into(), value.into());
    }
    let mut hierarchy = vec![own];
    while let Some(parent) = hierarchy.last().and_then(|kind| kind.parent()) {
        hierarchy.push(parent);
    }
    let names: Vec<_> = hierarchy.iter().map(|kind| kind.name()).collect();
    described.insert("hierarchy".into(), json!(names));
    let interfaces: Vec<_> = own.interfaces().iter().map(|kind| kind.name()).collect();
    described.insert("interfaces".into(), json!(interfaces));
    let rank = match factory.rank() {
        gst::Rank::NONE => "none".to_owned(),
        gst::Rank::MARGINAL => "marginal".into(),
        gst::Rank::SECONDARY => "secondary".into(),
        gst::Rank::PRIMARY => "primary".into(),
        other => panic!("a rank of {other:?} has no name"),
    };
    described.insert("rank".into(), rank.into());

    let mut templates = Map::new();
    for template in element.pad_template_list() {
        let name = template.name_template().replace('%', "%%");
        templates.insert(name, pad_template(&template));
    }
    described.insert("pad-templates".into(), templates.into());

    let mut properties = Map::new();
    for spec in element.list_properties() {
        if spec.owner_type() == own {
            enumeration(spec.value_type(), other_types);
            properties.insert(spec.name().into(), property(&element, &spec));
        }
    }
    described.insert("properties".into(), properties.into());

    let mut signals = Map::new();
    for signal in signals_of(own) {
        let query = signal.query();
        for kind in query.param_types().iter().map(|kind| kind.type_()) {
            enumeration(kind, other_types);
        }
        signals.insert(query.signal_name().into(), described_signal(&query));
    }
    if !signals.is_empty() {
        described.insert("signals".into(), signals.into());
    }
    described.into()
}

fn pad_template(template: &gst::PadTemplate) -> Value {
    let direction = match template.direction() {
        gst::PadDirection::Src => "src",
        gst::PadDirection::Sink => "sink",
        _ => "unknown",
    };
    let presence = match template.presence() {
        gst::PadPresence::Always => "always",
        gst::PadPresence::Sometimes => "sometimes",
        gst::PadPresence::Request => "request",
    };
    let mut described = json!({
        "caps": caps(template.documentation_caps()),
        "direction": direction,
        "presence": presence,
    });
    let kind = template.gtype();
    if kind != glib::Type::UNIT && kind != gst::Pad::static_type() {
        described["type"] = kind.name().into();
    }
    described
}

/// Caps with one field a line, names flush right.
fn caps(caps: &gst::Caps) -> String {
    if caps.is_any() {
        return "ANY".into();
    }
    if caps.is_empty() {
        return "EMPTY".into();
    }
    let mut text = String::new();
    for (i, (structure, features)) in caps.iter_with_features().enumerate() {
        if features.is_any() || !features.is_equal(gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY.as_ref())
        {
            let gap = if i > 0 { "\n" } else { "" };
            text += &format!("{gap}{}({features}):\n", structure.name());
        } else {
            text += &format!("{}:\n", structure.name());
        }
        for (name, value) in structure.iter() {
            let value = value.serialize().unwrap().replace("(string)", "");
            text += &format!("{:>15}: {value}\n", name.as_str());
        }
    }
    text
}

fn property(element: &gst::Element, spec: &glib::ParamSpec) -> Value {
    let flags = spec.flags();
    let has = |flag| flags.contains(flag);
    let mutable = if has(gst::PARAM_FLAG_MUTABLE_PLAYING) {
        "playing"
    } else if has(gst::PARAM_FLAG_MUTABLE_PAUSED) {
        "paused"
    } else if has(gst::PARAM_FLAG_MUTABLE_READY) {
        "ready"
    } else {
        "null"
    };
    let mut described = json!({
        "blurb": spec.blurb().unwrap_or_default(),
        "conditionally-available": has(gst::PARAM_FLAG_CONDITIONALLY_AVAILABLE),
        "construct": has(glib::ParamFlags::CONSTRUCT),
        "construct-only": has(glib::ParamFlags::CONSTRUCT_ONLY),
        "controllable": has(gst::PARAM_FLAG_CONTROLLABLE),
        "mutable": mutable,
        "readable": has(glib::ParamFlags::READABLE),
        "type": spec.value_type().name(),
        "writable": has(glib::ParamFlags::WRITABLE),
    });
    let value = if has(glib::ParamFlags::READABLE) && !has(gst::PARAM_FLAG_DOC_SHOW_DEFAULT) {
        element.property_value(spec.name())
    } else {
        spec.default_value().clone()
    };
    let mut range = |value: String, min: String, max: String| {
        described["default"] = value.into();
        described["min"] = min.into();
        described["max"] = max.into();
    };
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        // As the tools print them: the largest is -1.
        let number = |n: u32| (n as i32).to_string();
        let value = number(value.get().unwrap());
        range(value, number(spec.minimum()), number(spec.maximum()));
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt>() {
        let value: i32 = value.get().unwrap();
        let (min, max) = (spec.minimum(), spec.maximum());
        range(value.to_string(), min.to_string(), max.to_string());
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
        let value: u64 = value.get().unwrap();
        let (min, max) = (spec.minimum(), spec.maximum());
        range(value.to_string(), min.to_string(), max.to_string());
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt64>() {
        let value: i64 = value.get().unwrap();
        let (min, max) = (spec.minimum(), spec.maximum());
        range(value.to_string(), min.to_string(), max.to_string());
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        let value: f64 = value.get().unwrap();
        let (min, max) = (spec.minimum(), spec.maximum());
        range(value.to_string(), min.to_string(), max.to_string());
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecFloat>() {
        let value: f32 = value.get().unwrap();
        let (min, max) = (spec.minimum(), spec.maximum());
        range(value.to_string(), min.to_string(), max.to_string());
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        // SAFETY: the value is of the enumeration that the specification is for.
        let number = unsafe { glib::gobject_ffi::g_value_get_enum(value.to_glib_none().0) };
        let nick = class.value(number).map_or("", |value| value.nick());
        described["default"] = format!("{nick} ({number})").into();
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecFlags>() {
        let class = spec.flags_class();
        // SAFETY: the value is of the flags type that the specification is for.
        let bits = unsafe { glib::gobject_ffi::g_value_get_flags(value.to_glib_none().0) };
        let set = class.values().iter().filter(|v| v.value() & bits != 0);
        let nicks: Vec<_> = set.map(|value| value.nick()).collect();
        let text = match nicks.is_empty() {
            true => "(none)".into(),
            false => nicks.join("+"),
        };
        described["default"] = text.into();
    } else if value.type_() == glib::Type::BOOL {
        described["default"] = value.get::<bool>().unwrap().to_string().into();
    } else if value.type_() == glib::Type::STRING {
        let text: Option<String> = value.get().unwrap();
        described["default"] = text.unwrap_or("NULL".into()).into();
    } else if let Ok(Some(structure)) = value.get::<Option<gst::Structure>>() {
        described["default"] = structure.to_string().into();
    } else if let Ok(Some(caps)) = value.get::<Option<gst::Caps>>() {
        described["default"] = caps.to_string().into();
    }
    described
}

/// Describes an enumeration or flags type that belongs to the plugin's interface.
fn enumeration(kind: glib::Type, other_types: &mut OtherTypes) {
    if kind.plugin_api_flags().is_none() {
        return;
    }
    let described = if let Some(class) = glib::EnumClass::with_type(kind) {
        let values = class.values().iter().map(|value| {
            json!({
                "desc": value.name(),
                "name": value.nick(),
                "value": value.value().to_string(),
            })
        });
        json!({ "kind": "enum", "values": values.collect::<Vec<_>>() })
    } else if let Some(class) = glib::FlagsClass::with_type(kind) {
        let values = class.values().iter().map(|value| {
            json!({
                "desc": value.name(),
                "name": value.nick(),
                "value": format!("{:#010x}", value.value()),
            })
        });
        json!({ "kind": "flags", "values": values.collect::<Vec<_>>() })
    } else {
        return;
    };
    other_types.insert(kind.name().into(), described);
}

/// The signals that a type has of its own.
fn signals_of(kind: glib::Type) -> Vec<glib::subclass::SignalId> {
    // SAFETY: the type exists, and the array that comes back is ours, with as many entries as it says.
    unsafe {
        let mut count = 0;
        let ids = glib::gobject_ffi::g_signal_list_ids(kind.into_glib(), &mut count);
        let signals = (0..count as usize)
            .map(|i| from_glib(*ids.add(i)))
            .collect();
        glib::ffi::g_free(ids.cast());
        signals
    }
}

fn described_signal(query: &glib::subclass::SignalQuery) -> Value {
    let args: Vec<_> = query
        .param_types()
        .iter()
        .enumerate()
        .map(|(i, kind)| json!({ "name": format!("arg{i}"), "type": kind.type_().name() }))
        .collect();
    let mut described = json!({
        "args": args,
        "return-type": query.return_type().type_().name(),
    });
    let flags = query.flags();
    for (flag, when) in [
        (glib::SignalFlags::RUN_CLEANUP, "cleanup"),
        (glib::SignalFlags::RUN_LAST, "last"),
        (glib::SignalFlags::RUN_FIRST, "first"),
    ] {
        if flags.contains(flag) {
            described["when"] = when.into();
        }
    }
    for (flag, name) in [
        (glib::SignalFlags::NO_RECURSE, "no-recurse"),
        (glib::SignalFlags::DETAILED, "detailed"),
        (glib::SignalFlags::ACTION, "action"),
        (glib::SignalFlags::NO_HOOKS, "no-hooks"),
    ] {
        if flags.contains(flag) {
            described[name] = true.into();
        }
    }
    described
}

/// With all keys in order, also where serde_json is built to keep theirs.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            map.into_iter().collect::<Map<_, _>>().into()
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        other => other,
    }
}

#[test]
fn the_cache_is_what_the_plugin_says() {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(&sorted(describe(&load())), &mut writer).unwrap();
    let text = String::from_utf8(text).unwrap() + "\n";

    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/plugins/gst_plugins_cache.json"
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap();
    let line = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        kept == text,
        "line {} of {path} is not what the plugin says; run UPDATE_DOCS=1 cargo test --test plugin_cache",
        line.map_or("after the last common one".into(), |i| (i + 1).to_string()),
    );
}

/// What would make the file worthless: nothing in it.
#[test]
fn the_cache_holds_the_element() {
    let described = describe(&load());
    let element = &described["streamdiffusion"]["elements"]["streamdiffusion"];
    assert_eq!(element["klass"], "Filter/Effect/Video");
    assert_eq!(element["hierarchy"][0], "GstStreamDiffusion");
    assert_eq!(element["hierarchy"][5], "GObject");
    assert!(
        element["interfaces"]
            .as_array()
            .unwrap()
            .contains(&"GstPreset".into())
    );
    let strength = &element["properties"]["strength"];
    assert_eq!(strength["type"], "gdouble");
    assert_eq!(strength["mutable"], "playing");
    assert_eq!(
        (&strength["min"], &strength["max"]),
        (&"0".into(), &"1".into())
    );
    assert_eq!(element["pad-templates"]["sink"]["presence"], "always");
    let others = described["streamdiffusion"]["other-types"]
        .as_object()
        .unwrap();
    // Every enumeration of a property is one that is documented.
    for (name, property) in element["properties"].as_object().unwrap() {
        let kind = property["type"].as_str().unwrap();
        if kind.starts_with("GstStreamDiffusion") {
            assert!(others.contains_key(kind), "{name}: {kind}");
        }
    }
    assert!(others["GstStreamDiffusionTiming"]["values"][1]["name"] == "immediate");
}
