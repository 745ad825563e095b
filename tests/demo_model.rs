//! The bundled model, as the element's default: prompts name styles, and the picture stays the picture. Its figures on many
//! pictures are in models/demo/REPORT.md; here are marks of a style that any picture must show.

mod common;

use std::path::Path;

use common::*;

const SIDE: usize = 128;

/// A bright disc with a dark ring on a ground that goes from brown to green.
fn scene() -> Vec<u8> {
    let pixel = |i: usize| {
        let (x, y) = ((i % SIDE) as f64, (i / SIDE) as f64);
        let from_centre = ((x - 70.0).powi(2) + (y - 56.0).powi(2)).sqrt();
        match from_centre {
            0.0..28.0 => [235, 215, 160],
            28.0..34.0 => [40, 25, 20],
            _ => [150 - x as u8 / 2, 80 + x as u8 / 2, 60 + y as u8 / 4],
        }
    };
    (0..SIDE * SIDE).flat_map(pixel).collect()
}

/// The bundled model's picture of [`scene`]; the element is told nothing but the prompt.
fn painted(prompt: &str) -> Vec<u8> {
    let caps = caps("RGB", SIDE as u32, SIDE as u32);
    let settings = [("model", ""), ("prompt", prompt)];
    let mut pictures = restyle(&settings, &caps, vec![buffer(scene(), 0)]);
    pictures.remove(0)
}

/// Mean of red, green and blue.
fn means(rgb: &[u8]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for pixel in rgb.chunks(3) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += f64::from(*value) * 3.0 / rgb.len() as f64;
        }
    }
    sums
}

/// Mean distance between a pixel's largest and smallest value.
fn colourfulness(rgb: &[u8]) -> f64 {
    let spread = |p: &[u8]| f64::from(*p.iter().max().unwrap() - *p.iter().min().unwrap());
    rgb.chunks(3).map(spread).sum::<f64>() * 3.0 / rgb.len() as f64
}

/// Correlation of two pictures' brightness, block by block: hatching, tiles and dots repeat within one.
fn correlation(a: &[u8], b: &[u8]) -> f64 {
    const BLOCK: usize = 16;
    let blocks = |rgb: &[u8]| -> Vec<f64> {
        let mut sums = vec![0.0; (SIDE / BLOCK).pow(2)];
        for (i, pixel) in rgb.chunks(3).enumerate() {
            let (x, y) = (i % SIDE, i / SIDE);
            let brightness: f64 = pixel.iter().map(|v| f64::from(*v)).sum();
            sums[y / BLOCK * (SIDE / BLOCK) + x / BLOCK] += brightness;
        }
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        sums.iter().map(|sum| sum - mean).collect()
    };
    let (a, b) = (blocks(a), blocks(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn styles_show_their_marks() {
    let [r, g, b] = means(&painted("a blueprint"));
    assert!(b > r + 60.0 && b > g + 30.0, "blueprint: {r} {g} {b}");
    let [r, g, b] = means(&painted("night vision"));
    assert!(g > r + 40.0 && g > b + 40.0, "night vision: {r} {g} {b}");
    let [r, g, b] = means(&painted("sepia, an old photograph"));
    assert!(r > g + 10.0 && g > b + 10.0, "sepia: {r} {g} {b}");
    let pencil = colourfulness(&painted("a pencil sketch"));
    let own = colourfulness(&scene());
    assert!(pencil < own / 3.0, "pencil: {pencil} of {own}");
    let [r, g, b] = means(&painted("neon lights"));
    let input = means(&scene()).iter().sum::<f64>();
    assert!(r + g + b < input / 2.0, "neon: {r} {g} {b} of {input}");
}

/// Brightness follows the input's, and not that of another picture: the same one moved by half its size.
#[test]
fn the_picture_stays_the_picture() {
    let scene = scene();
    let mut moved = scene.clone();
    moved.rotate_right(3 * (SIDE / 2 * SIDE + SIDE / 2));
    for prompt in ["oil painting", "watercolour", "mosaic", "xqzzv blorp", ""] {
        let painted = painted(prompt);
        let (own, other) = (correlation(&painted, &scene), correlation(&painted, &moved));
        assert!(
            own > 0.6 && own > other + 0.5,
            "{prompt:?}: {own}, not {other}"
        );
    }
}

#[test]
fn is_small_enough_for_git() {
    fn size(path: &Path) -> u64 {
        let meta = path.metadata().unwrap();
        match meta.is_dir() {
            true => std::fs::read_dir(path)
                .unwrap()
                .map(|entry| size(&entry.unwrap().path()))
                .sum(),
            false => meta.len(),
        }
    }
    let total = size(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    assert!((1 << 20..=12_000_000).contains(&total), "{total} bytes");
}
