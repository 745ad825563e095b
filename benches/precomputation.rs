//! What computing ahead saves: the U-Net whole against the U-Net split, in turns, in one process.
//!
//! `cargo bench --bench precomputation -- [FOLDER] [WIDTHxHEIGHT] [ROWS] [ROUNDS]`
//! (the bundled demo model, 256x256, 2 rows, 20 rounds).
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the program).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gststreamdiffusion::device::HostTensor;
use gststreamdiffusion::engine::onnxruntime::OnnxModel;
use gststreamdiffusion::engine::{Denoise, Model};
use gststreamdiffusion::error::Result;
use gststreamdiffusion::model::ModelFolder;
use gststreamdiffusion::stream::noise::TorchGenerator;

const TIMESTEPS: [u32; 4] = [359, 99, 759, 499];

fn main() -> Result<()> {
    // Cargo adds an option of its own.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let arg = |i: usize, default: &str| args.get(i).map_or(default, |a| a).to_owned();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let folder = ModelFolder::open(&PathBuf::from(arg(0, demo)))?;
    let size = arg(1, "256x256");
    let size: Vec<usize> = size.split('x').filter_map(|n| n.parse().ok()).collect();
    let number = |i, default| arg(i, default).parse::<usize>().unwrap_or(1).max(1);
    let (rows, rounds) = (number(2, "2"), number(3, "20"));
    let [width, height] = size[..] else {
        eprintln!("the second argument is a size, such as 512x512");
        std::process::exit(2);
    };

    let whole = OnnxModel::open_whole(&folder)?;
    let split = OnnxModel::open(&folder)?;
    let scale = folder.latent_scale();
    let shape = [1, folder.latent_channels(), height / scale, width / scale];
    let noise = TorchGenerator::new(0).randn(rows * shape.iter().product::<usize>());
    let samples: Vec<_> = noise
        .chunks(noise.len() / rows)
        .map(|map| HostTensor::new(&shape, map.to_vec()))
        .collect();
    let timesteps: Vec<u32> = TIMESTEPS.into_iter().cycle().take(rows).collect();

    println!("{}, {width}x{height}, {rows} rows", folder.name());
    println!("computed ahead: {}", split.precomputed());
    let prepare = |model: &OnnxModel| {
        let text = model.encode_text(Some("a neon cat"), 1)?.into();
        let start = Instant::now();
        let contexts = model.precompute(&timesteps, &text, (shape[2], shape[3]), None)?;
        Ok((contexts, start.elapsed()))
    };
    let (of_whole, _) = prepare(&whole)?;
    let (of_split, ahead) = prepare(&split)?;
    println!("once per prompt or step list: {:.1} ms", ms(ahead));
    println!("kept for a row: {:.1} MB", of_split[0].bytes() as f64 / 1e6);

    let mut times = [Vec::new(), Vec::new()];
    let mut difference = 0f32;
    for round in 0..=rounds {
        let mut outputs = Vec::new();
        for (i, (model, contexts)) in [(&whole, &of_whole), (&split, &of_split)]
            .into_iter()
            .enumerate()
        {
            let rows: Vec<_> = (samples.iter().zip(contexts))
                .map(|(sample, context)| Denoise { sample, context })
                .collect();
            let start = Instant::now();
            outputs.push(model.denoise(&rows)?);
            // The first round sets memory up.
            if round > 0 {
                times[i].push(start.elapsed());
            }
        }
        for (a, b) in outputs[0].iter().zip(&outputs[1]) {
            let pairs = a.data().iter().zip(b.data());
            difference = pairs.fold(difference, |most, (a, b)| most.max((a - b).abs()));
        }
    }
    let [whole, split] = times.map(median);
    println!("U-Net whole: {:.2} ms", ms(whole));
    println!("U-Net split: {:.2} ms", ms(split));
    println!(
        "saved: {:.2} ms, {:.1} % of the U-Net; largest difference of an output: {difference:e}",
        ms(whole) - ms(split),
        100.0 * (1.0 - ms(split) / ms(whole))
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
