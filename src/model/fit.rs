//! Whether the parts of a model folder belong together.

use super::TextEncoder;
use super::component::{ComponentFile, Role};
use crate::error::{Error, Result};

/// Blocks of Stable Diffusion's U-Net and VAE, for folders without configurations.
const BLOCKS: usize = 4;

/// What parts that fit together agree on.
#[derive(Debug)]
pub(super) struct Fit {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Pixels per latent sample, each way.
    pub latent_scale: usize,
    /// Whether the image encoder gives mean and logarithm of variance.
    pub gives_posterior: bool,
    /// The only `(width, height)` in pixels that the graphs take, where they fix it.
    pub fixed_size: Option<(usize, usize)>,
}

impl Fit {
    /// Checks that these parts fit together.
    pub fn of(
        texts: &[TextEncoder],
        unet: &ComponentFile,
        encoder: &ComponentFile,
        decoder: &ComponentFile,
    ) -> Result<Self> {
        check_text(texts, unet)?;
        let latent_channels = latent_channels(unet, encoder, decoder)?;
        let gives_posterior = gives_posterior(encoder, latent_channels)?;
        if blocks(encoder) != blocks(decoder) {
            return Err(Error::invalid(
                &decoder.path.with_file_name("config.json"),
                format!(
                    "block_out_channels has {} values, expected {}, as vae_encoder's",
                    blocks(decoder),
                    blocks(encoder)
                ),
            ));
        }
        let latent_scale = 1 << (blocks(encoder) - 1);
        Ok(Self {
            latent_channels,
            latent_scale,
            gives_posterior,
            fixed_size: fixed_size([unet, encoder, decoder], latent_scale)?,
        })
    }
}

/// The number of resolutions that a component works at.
pub(super) fn blocks(file: &ComponentFile) -> usize {
    let blocks = file.config.block_out_channels.as_ref();
    blocks.map_or(BLOCKS, Vec::len)
}

/// Whether the image encoder gives a distribution of latents instead of one.
fn gives_posterior(encoder: &ComponentFile, latent_channels: usize) -> Result<bool> {
    match encoder.output.fixed(1) {
        Some(c) if c == latent_channels => Ok(false),
        Some(c) if c == 2 * latent_channels => Ok(true),
        Some(c) => Err(Error::invalid(
            &encoder.path,
            format!(
                "its output {} has {c} channels, expected {latent_channels} or, for mean and variance, {}",
                encoder.output,
                2 * latent_channels
            ),
        )),
        None => Ok(encoder.output.name == "latent_parameters"),
    }
}

/// Checks that tokenizers, text encoders and U-Net agree on the text embeddings' shapes.
fn check_text(encoders: &[TextEncoder], unet: &ComponentFile) -> Result<()> {
    let length = encoders[0].tokenizer.length();
    let mut width = Some(0);
    for TextEncoder { file, tokenizer } in encoders {
        if tokenizer.length() != length {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "its texts have {} tokens, expected {length}, as those of the first text encoder",
                    tokenizer.length()
                ),
            ));
        }
        if file.output.fixed(1).is_some_and(|l| l != length) {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "its output {} is expected to have {length} tokens, as its input",
                    file.output
                ),
            ));
        }
        width = width.zip(file.output.fixed(2)).map(|(a, b)| a + b);
    }
    let pooled = encoders.last().and_then(|e| e.file.pooled.as_ref());
    if unet.input(Role::Pooled).is_some() && pooled.is_none() {
        return Err(Error::invalid(
            &unet.path,
            "wants a pooled text embedding, which only the second text encoder of a StableDiffusionXL… pipeline gives",
        ));
    }
    let text = unet.input(Role::Text);
    if let Some(wanted) = text.and_then(|p| p.fixed(1))
        && wanted % length != 0
    {
        return Err(Error::invalid(
            &unet.path,
            format!(
                "wants text embeddings of {wanted} tokens, expected {length} or a multiple, as the text encoder gives: they belong to different models"
            ),
        ));
    }
    for (wanted, given) in [
        (text.and_then(|p| p.fixed(2)), width),
        (
            unet.input(Role::Pooled).and_then(|p| p.fixed(1)),
            pooled.and_then(|p| p.fixed(1)),
        ),
    ] {
        if let (Some(wanted), Some(given)) = (wanted, given)
            && wanted != given
        {
            return Err(Error::invalid(
                &unet.path,
                format!(
                    "wants text embeddings of {wanted}, expected {given}, as the text encoder gives: they belong to different models"
                ),
            ));
        }
    }
    Ok(())
}

/// The channels of a latent, on which every graph and configuration must agree.
fn latent_channels(
    unet: &ComponentFile,
    encoder: &ComponentFile,
    decoder: &ComponentFile,
) -> Result<usize> {
    let sample = |file: &ComponentFile| file.input(Role::Sample).and_then(|p| p.fixed(1));
    let channels = decoder
        .config
        .latent_channels
        .or(sample(decoder))
        .or(encoder.config.latent_channels)
        .or(unet.output.fixed(1))
        .unwrap_or(4);
    for (file, found) in [
        (encoder, encoder.config.latent_channels),
        (decoder, sample(decoder)),
        (unet, unet.config.in_channels),
        (unet, sample(unet)),
        (unet, unet.output.fixed(1)),
    ] {
        if let Some(found) = found.filter(|c| *c != channels) {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "unsupported: its latents have {found} channels, expected the image decoder's {channels}"
                ),
            ));
        }
    }
    Ok(channels)
}

/// The picture size that the graphs fix, on which they must agree.
fn fixed_size(
    [unet, encoder, decoder]: [&ComponentFile; 3],
    scale: usize,
) -> Result<Option<(usize, usize)>> {
    let mut size: [Option<usize>; 2] = [None; 2];
    let latent = |file, port| (file, port, scale);
    for (file, port, scale) in [
        (encoder, encoder.input(Role::Sample), 1),
        latent(encoder, Some(&encoder.output)),
        latent(unet, unet.input(Role::Sample)),
        latent(unet, Some(&unet.output)),
        latent(decoder, decoder.input(Role::Sample)),
        (decoder, Some(&decoder.output), 1),
    ] {
        let Some(port) = port else { continue };
        for (known, found) in size.iter_mut().zip([port.fixed(3), port.fixed(2)]) {
            let Some(found) = found.map(|f| f * scale) else {
                continue;
            };
            if *known.get_or_insert(found) != found {
                return Err(Error::invalid(
                    &file.path,
                    format!("{port} fixes another picture size than the components before it"),
                ));
            }
        }
    }
    match size {
        [Some(width), Some(height)] => Ok(Some((width, height))),
        [None, None] => Ok(None),
        _ => Err(Error::invalid(
            &unet.path,
            "unsupported: width or height is fixed, expected both or neither",
        )),
    }
}
