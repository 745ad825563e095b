//! The command that an error tells.

use std::path::Path;

use super::super::builder;
use super::Gpu;
use crate::error::Result;
use crate::model::ModelFolder;

/// The command that builds engines of the model for the GPU, less the options that say for what.
pub(super) fn command(folder: &ModelFolder, gpu: Gpu) -> Result<String> {
    let path = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    let mut text = format!("streamdiffusion build {}", shell_word(&path));
    let capabilities = gpu.capabilities()?;
    if !capabilities.is_empty() {
        text += &format!(
            " --compute-capability {}",
            builder::capabilities_name(&capabilities)
        );
    }
    Ok(text)
}

/// A path as a shell takes it for one word.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:,".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        assert_eq!(
            shell_word(Path::new("/models/sd-turbo_1.5")),
            "/models/sd-turbo_1.5"
        );
        assert_eq!(
            shell_word(Path::new("/my models/it's")),
            "'/my models/it'\\''s'"
        );
    }
}
