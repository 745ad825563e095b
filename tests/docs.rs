//! The README's property table is what the element says of itself, and the element's own documentation is right.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes it anew.

use gst::glib;
use gst::prelude::*;

const BEGIN: &str = "<!-- properties: begin -->\n";
const END: &str = "<!-- properties: end -->\n";

fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gststreamdiffusion::plugin_register_static().unwrap();
    });
}

fn table() -> String {
    init();
    let element = gst::ElementFactory::make("streamdiffusion")
        .build()
        .unwrap();
    let own = element.type_();
    let mut rows =
        String::from("| property | values | default | when | what |\n|---|---|---|---|---|\n");
    for spec in element.list_properties() {
        if spec.owner_type() == own {
            rows += &row(&spec);
        }
    }
    rows
}

fn row(spec: &glib::ParamSpec) -> String {
    let (values, default) = if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        let range = match (spec.minimum(), spec.maximum()) {
            (least, u32::MAX) => format!("{least}…"),
            (least, most) => format!("{least}…{most}"),
        };
        (range, spec.default_value().to_string())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt>() {
        let range = match (spec.minimum(), spec.maximum()) {
            (least, i32::MAX) => format!("{least}…"),
            (least, most) => format!("{least}…{most}"),
        };
        (range, spec.default_value().to_string())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt64>() {
        let range = match (spec.minimum(), spec.maximum()) {
            (least, i64::MAX) => format!("{least}…"),
            (least, most) => format!("{least}…{most}"),
        };
        (range, spec.default_value().to_string())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        (
            format!("{}…{}", spec.minimum(), spec.maximum()),
            spec.default_value().to_string(),
        )
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
        ("uint64".into(), spec.default_value().to_string())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        let nicks: Vec<_> = class.values().iter().map(|value| value.nick()).collect();
        let default = class.value(spec.default_value_as_i32()).unwrap().nick();
        (nicks.join(", "), default.into())
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecBoolean>() {
        ("true, false".into(), spec.default_value().to_string())
    } else if spec.value_type() == glib::Type::STRING {
        ("text".into(), "unset".into())
    } else {
        (spec.value_type().name().into(), String::new())
    };
    let flags = spec.flags();
    let when = if !flags.contains(glib::ParamFlags::WRITABLE) {
        "read"
    } else if flags.contains(gst::PARAM_FLAG_CONTROLLABLE) {
        "live, controllable"
    } else if flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
        "live"
    } else {
        "at start"
    };
    // In a table a bar would begin a column.
    let blurb = spec.blurb().unwrap_or_default().replace('|', "\\|");
    format!(
        "| `{}` | {values} | {default} | {when} | {blurb} |\n",
        spec.name()
    )
}

#[test]
fn property_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let begin = readme.find(BEGIN).expect("README.md has a property table") + BEGIN.len();
    let end = readme.find(END).expect("README.md has a property table");
    let table = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let readme = format!("{}{table}{}", &readme[..begin], &readme[end..]);
        std::fs::write(path, readme).unwrap();
        return;
    }
    assert!(
        table.lines().count() > 20,
        "the element has properties:\n{table}"
    );
    assert_eq!(
        readme[begin..end],
        table,
        "run UPDATE_DOCS=1 cargo test --test docs"
    );
}

/// The pipelines in the element's own documentation are such that GStreamer makes of them.
#[test]
fn section_pipelines() {
    init();
    gst::Preset::set_app_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/presets")).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/element/mod.rs");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text
        .split("SECTION:element-streamdiffusion")
        .nth(1)
        .unwrap();
    let section = section.split("*/").next().unwrap();
    let lines: Vec<_> = section
        .lines()
        .filter_map(|line| line.split_once("gst-launch-1.0 "))
        .map(|(_, line)| line)
        .collect();
    assert!(lines.len() >= 3, "{section}");
    for line in lines {
        let pipeline = gst::parse::launch(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let bin = pipeline.downcast::<gst::Bin>().unwrap();
        let elements = bin.children();
        let ours = |element: &gst::Element| element.type_().name() == "GstStreamDiffusion";
        assert!(elements.iter().any(ours), "{line}");
    }
}
