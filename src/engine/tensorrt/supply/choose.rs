//! Of the engines that there are, three that do what is wanted, together.

use super::{Supply, Wanted, told};
use crate::engine::Built;
use crate::engine::built::ANY;
use crate::engine::cache::Record;
use crate::error::{Error, Result};

/// What an engine was built for. Whatever its record does not say is no limit.
fn built_of(record: &Record, command: &str) -> Built {
    let range = |name| record.serves.get(name).copied().unwrap_or((1, ANY));
    Built {
        width: range("width"),
        height: range("height"),
        rows: range("rows"),
        frames: range("frames"),
        chunks: range("chunks"),
        command: command.to_owned(),
    }
}

/// Whether an engine does what is wanted of it; the error says what it cannot do.
fn serves(built: &Built, wanted: &Wanted) -> Result<()> {
    built.check_size(
        wanted.width.unwrap_or(built.width.0),
        wanted.height.unwrap_or(built.height.0),
    )?;
    built.check_calls(wanted.calls)
}

/// Of the engines of each component, three that do what is wanted, together.
pub(super) fn choose(usable: [&[&Record]; 3], wanted: &Wanted, command: &str) -> Result<Supply> {
    type Candidate<'a> = (&'a Record, Built);
    let mut fit: Vec<Vec<Candidate>> = Vec::new();
    for of_component in usable {
        let all = of_component.iter().map(|r| (*r, built_of(r, command)));
        let (mut good, mut refusals) = (Vec::new(), Vec::new());
        for (record, built) in all {
            match serves(&built, wanted) {
                Ok(()) => good.push((record, built)),
                // What is of the right size comes nearest.
                Err(error) => refusals.push((wrong_size(&error), error)),
            }
        }
        if good.is_empty() {
            refusals.sort_by_key(|(wrong_size, _)| *wrong_size);
            let first = refusals.into_iter().next().map(|(_, error)| error);
            return Err(first.unwrap_or_else(|| Error::engine("engines", "are none")));
        }
        // An engine for one size and few rows is the fastest for them.
        let spread = |(least, most): (usize, usize)| match most {
            // Nothing that an engine was made for.
            ANY => 0,
            most => most.saturating_sub(least),
        };
        good.sort_by_key(|(record, built)| {
            (
                record.key.part != "live",
                spread(built.width) + spread(built.height),
                spread(built.rows) + spread(built.frames),
            )
        });
        fit.push(good);
    }
    let [unets, encoders, decoders] = &fit[..] else {
        return Err(Error::engine("engines", "are not three; this is a bug"));
    };
    for (unet, of_unet) in unets {
        // Where nobody says the size, the U-Net's engine does.
        let side = |wanted: Option<usize>, built| wanted.map_or(built, |side| (side, side));
        let width = side(wanted.width, of_unet.width);
        let height = side(wanted.height, of_unet.height);
        let within = |a: (usize, usize), b: (usize, usize)| b.0 <= a.0 && a.1 <= b.1;
        let covers =
            |(_, built): &&Candidate| within(width, built.width) && within(height, built.height);
        let found = (encoders.iter().find(covers)).zip(decoders.iter().find(covers));
        if let Some(((encoder, of_encoder), (decoder, of_decoder))) = found {
            let records = [*unet, *encoder, *decoder];
            let frames = (
                of_encoder.frames.0.max(of_decoder.frames.0),
                of_encoder.frames.1.min(of_decoder.frames.1),
            );
            return Ok(Supply {
                engines: records.map(|record| record.key.clone()),
                built: Built {
                    width,
                    height,
                    frames,
                    ..of_unet.clone()
                },
                origin: records.map(|r| told(r, "found")).join("; "),
            });
        }
    }
    let (_, built) = &unets[0];
    Err(Error::setting(
        "backend",
        format!(
            "tensorrt cannot be had: the engines of the U-Net and of the autoencoder are for different sizes. \"{}\" builds those that are missing",
            built.build_command()
        ),
    ))
}

fn wrong_size(error: &Error) -> bool {
    matches!(error, Error::Setting { property, .. } if ["width", "height"].contains(property))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::Calls;
    use crate::engine::cache::{Key, Made};

    fn record(component: &str, part: &str, serves: &[(&str, (usize, usize))]) -> Record {
        let serves = serves
            .iter()
            .map(|(name, range)| ((*name).to_owned(), *range));
        let serves: BTreeMap<_, _> = serves.collect();
        let mut key = Key::new(component, part);
        key.inputs = vec![format!("{serves:?}")];
        let made = Made {
            model: "/m".into(),
            at: "2026-01-02T03:04:05Z".into(),
            took_seconds: 2.0,
            by: "a test".into(),
        };
        Record::new(&key, &serves, b"engine", made)
    }

    fn unet(width: (usize, usize), rows: usize) -> Record {
        let serves = [
            ("width", width),
            ("height", (512, 512)),
            ("rows", (1, rows)),
            ("chunks", (1, 1)),
        ];
        record("unet", "live", &serves)
    }

    fn coders(width: (usize, usize), frames: usize) -> [Record; 2] {
        let serves = [
            ("width", width),
            ("height", (512, 512)),
            ("frames", (1, frames)),
        ];
        ["vae_encoder", "vae_decoder"].map(|name| record(name, "whole", &serves))
    }

    fn wanted(rows: usize, frames: usize, width: Option<usize>) -> Wanted {
        Wanted {
            calls: Calls {
                steps: rows / frames,
                frames,
                rows,
            },
            width,
            height: width.map(|_| 512),
        }
    }

    fn chosen(unets: &[Record], coders: &[[Record; 2]], wanted: &Wanted) -> Result<Supply> {
        let unets: Vec<&Record> = unets.iter().collect();
        let [encoders, decoders] = [0, 1].map(|i| coders.iter().map(|c| &c[i]).collect::<Vec<_>>());
        choose(
            [&unets, &encoders, &decoders],
            wanted,
            "streamdiffusion build m",
        )
    }

    #[test]
    fn the_nearest_engines_that_do_together_are_taken() {
        let unets = [
            unet((384, 1024), 8),
            unet((640, 640), 8),
            unet((512, 512), 16),
            unet((512, 512), 8),
        ];
        let coders = [coders((384, 1024), 2), coders((512, 512), 1)];
        let found = |wanted: &Wanted| chosen(&unets, &coders, wanted).unwrap();
        let serving = |supply: &Supply| supply.engines.clone().map(|key| key.inputs[0].clone());
        let inputs = |record: &Record| record.key.inputs[0].clone();
        // One size and few rows before a range and many.
        let first = found(&wanted(8, 1, Some(512)));
        assert_eq!(
            serving(&first),
            [
                inputs(&unets[3]),
                inputs(&coders[1][0]),
                inputs(&coders[1][1])
            ]
        );
        assert_eq!((first.built.width, first.built.rows), ((512, 512), (1, 8)));
        assert!(
            first.origin.starts_with(
                "unet (live part): found, built 2026-01-02T03:04:05Z in 2.0 s; vae_encoder: found"
            ),
            "{}",
            first.origin
        );
        assert_eq!(found(&wanted(12, 1, Some(512))).engines[0], unets[2].key);
        assert_eq!(found(&wanted(8, 1, Some(768))).engines[0], unets[0].key);
        let two = found(&wanted(4, 2, Some(640)));
        assert_eq!(two.engines[0], unets[1].key);
        assert_eq!((two.built.width, two.built.frames), ((640, 640), (1, 2)));
        // Without a size, the U-Net's engine says it, and the others have to cover it.
        let open = found(&wanted(8, 1, None));
        assert!(
            [(640, 640), (512, 512)].contains(&open.built.width),
            "{:?}",
            open.built
        );
        let only = chosen(&unets[..1], &coders, &wanted(8, 1, None)).unwrap();
        assert_eq!(
            (only.built.width, &only.engines[1]),
            ((384, 1024), &coders[0][0].key)
        );
    }

    #[test]
    fn what_no_engine_does_is_told_by_property() {
        let unets = [unet((512, 512), 8), unet((384, 640), 4)];
        let both = [coders((384, 640), 1)];
        let refused = |wanted: &Wanted, parts: &[&str]| {
            let text = chosen(&unets, &both, wanted).unwrap_err().to_string();
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        };
        // Of engines that are too small in one way each, the one of the right size is told of.
        refused(
            &wanted(8, 1, Some(640)),
            &[
                "property steps",
                "for 4 at most",
                "--size 384x512..640x512\"",
            ],
        );
        refused(
            &wanted(8, 1, Some(768)),
            &["property width", "768x512", "--size 768x512"],
        );
        refused(
            &wanted(9, 1, Some(512)),
            &["property steps", "--batch 1..9"],
        );
        refused(
            &wanted(4, 2, Some(512)),
            &[
                "property frame-buffer-size",
                "2 cannot be served",
                "--frame-buffer-size 2",
            ],
        );
        // Each does, but not together.
        let apart = chosen(
            &[unet((512, 512), 8)],
            &[coders((640, 640), 1)],
            &wanted(2, 1, None),
        );
        let text = apart.unwrap_err().to_string();
        assert!(
            text.contains("different sizes") && text.contains("--size 512x512"),
            "{text}"
        );
        // What a graph fixes is no limit.
        let fixed = record(
            "unet",
            "whole",
            &[("width", (512, 512)), ("height", (512, 512))],
        );
        let supply = chosen(
            &[fixed],
            &[coders((512, 512), 1)],
            &wanted(40, 1, Some(512)),
        )
        .unwrap();
        assert_eq!(supply.built.rows, (1, ANY));
    }
}
