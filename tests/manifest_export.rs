//! `[export]` and `[unet]` in `streamdiffusion.toml`: what is read, and which values are refused.

mod common;

use common::{Folder, init};
use gststreamdiffusion::model::{ExportBatch, ExportDtype, ExportSize, Manifest, ModelFolder};

fn open(manifest: &str) -> Result<Manifest, String> {
    init();
    let folder = Folder::model();
    std::fs::write(folder.file("streamdiffusion.toml"), manifest).unwrap();
    ModelFolder::open(folder.path())
        .map(|folder| folder.manifest().clone())
        .map_err(|error| error.to_string())
}

fn hash() -> String {
    "0123456789abcdefABCDEF0123456789".repeat(2)
}

#[test]
fn all_keys_are_read() {
    let hash = hash();
    let manifest = open(&format!(
        r#"
[unet]
guidance_embedding = 8.5
[export]
tool = "export_model.py"
version = "0.1.0"
torch = "2.15.0"
diffusers = "0.42.1"
dtype = "f16"
clip_skip = 1
vae = "tiny"
size = "640x384"
batch = 4
loras = [{{ file = "lcm.safetensors", sha256 = "{hash}", scale = -0.5 }}]
something_new = true
[export.files]
"unet/model.onnx" = "{hash}"
"model_index.json" = "{hash}"
[export.errors]
unet = 1.2e-4
text_encoder = 0
"#
    ))
    .unwrap();
    assert_eq!(manifest.unet.guidance_embedding, Some(8.5));
    let export = manifest.export.unwrap();
    assert_eq!(export.tool.as_deref(), Some("export_model.py"));
    assert_eq!(export.version.as_deref(), Some("0.1.0"));
    assert_eq!(export.torch.as_deref(), Some("2.15.0"));
    assert_eq!(export.diffusers.as_deref(), Some("0.42.1"));
    assert_eq!(export.dtype, Some(ExportDtype::F16));
    assert_eq!(export.clip_skip, Some(1));
    assert_eq!(export.vae.as_deref(), Some("tiny"));
    assert_eq!(export.size, Some(ExportSize::Fixed(640, 384)));
    assert_eq!(export.batch, Some(ExportBatch::Fixed(4)));
    assert_eq!(export.loras.len(), 1);
    assert_eq!(export.loras[0].scale, -0.5);
    assert_eq!(export.files["unet/model.onnx"], hash);
    assert_eq!(export.files.len(), 2);
    assert_eq!(export.errors["unet"], 1.2e-4);
    assert_eq!(export.errors["text_encoder"], 0.0);
}

#[test]
fn all_keys_may_be_left_out() {
    assert_eq!(open("").unwrap().export, None);
    let export = open("[export]\nsize = \"dynamic\"\nbatch = \"dynamic\"")
        .unwrap()
        .export
        .unwrap();
    assert_eq!(export.size, Some(ExportSize::Dynamic));
    assert_eq!(export.batch, Some(ExportBatch::Text("dynamic".into())));
    assert!(export.files.is_empty() && export.loras.is_empty() && export.errors.is_empty());
}

#[test]
fn wrong_values_are_refused_by_name() {
    let hash = hash();
    let short = &hash[1..];
    let long = "x".repeat(201);
    let many: String = (0..1001).map(|i| format!("k{i} = 0\n")).collect();
    let lora = |file: &str, hash: &str, scale: &str| {
        format!("[export]\nloras = [{{ file = \"{file}\", sha256 = \"{hash}\", scale = {scale} }}]")
    };
    let file = |name: &str, hash: &str| format!("[export.files]\n\"{name}\" = \"{hash}\"");
    for (manifest, parts) in [
        (
            "[unet]\nguidance_embedding = 101.0".to_owned(),
            &["unet.guidance_embedding", "101"][..],
        ),
        (
            "[unet]\nguidance_embedding = nan".into(),
            &["unet.guidance_embedding"],
        ),
        ("[unet]\nguidance = 1.0".into(), &["guidance"]),
        (
            format!("[export]\ntool = \"{long}\""),
            &["export.tool", "200"],
        ),
        (
            format!("[export]\nvae = \"{long}\""),
            &["export.vae", "200"],
        ),
        ("[export]\ndtype = \"f8\"".into(), &["f8", "f16"]),
        (
            "[export]\nclip_skip = 25".into(),
            &["export.clip_skip", "25"],
        ),
        ("[export]\nclip_skip = -1".into(), &["clip_skip"]),
        (
            "[export]\nsize = \"512\"".into(),
            &["export.size", "\"512\""],
        ),
        (
            "[export]\nsize = \"512x9000\"".into(),
            &["export.size", "9000"],
        ),
        ("[export]\nsize = 512".into(), &["size"]),
        ("[export]\nbatch = 0".into(), &["export.batch", "0"]),
        ("[export]\nbatch = 1025".into(), &["export.batch", "1025"]),
        (
            "[export]\nbatch = \"any\"".into(),
            &["export.batch", "\"any\""],
        ),
        (lora("", &hash, "1.0"), &["export.loras", "0 bytes"]),
        (
            lora("a", short, "1.0"),
            &["export.loras", "\"a\"", "64 hexadecimal"],
        ),
        (
            lora("a", &hash, "inf"),
            &["export.loras", "\"a\"", "finite"],
        ),
        (
            file("unet/model.onnx", short),
            &["export.files", "unet/model.onnx", "64 hexadecimal"],
        ),
        (
            file("unet/model.onnx", &hash.replace('a', "g")),
            &["export.files", "64 hexadecimal"],
        ),
        (file("../secret", &hash), &["export.files", "../secret"]),
        (file("/etc/passwd", &hash), &["export.files", "/etc/passwd"]),
        (file("unet/../../x", &hash), &["export.files", "inside"]),
        (file("", &hash), &["export.files", "inside"]),
        (
            "[export.errors]\nunet = -1.0".into(),
            &["export.errors", "unet"],
        ),
        (
            "[export.errors]\nunet = inf".into(),
            &["export.errors", "unet"],
        ),
        (
            format!("[export.errors]\n{many}"),
            &["export.errors", "1001"],
        ),
    ] {
        let message = open(&manifest).unwrap_err();
        for part in ["streamdiffusion.toml"].iter().chain(parts) {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}
