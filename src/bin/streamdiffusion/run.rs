//! `streamdiffusion run`: restyles a picture, or all pictures of a folder.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use gst::prelude::*;
use gststreamdiffusion::model::ModelFolder;
use gststreamdiffusion::{Mode, Timing};

use crate::failure::Failure;
use crate::interrupt;
use crate::pictures;
use crate::player::{Player, own_size};
use crate::progress::Progress;
use crate::settings::{Setting, size};

const EXAMPLES: &str = "\
Examples:
  streamdiffusion run -i photo.jpg -o painting.png --prompt \"oil painting\"
  streamdiffusion run models/sd-turbo -i frames/ -o restyled/ --steps 2 --strength 0.5
  streamdiffusion run -i photo.jpg -o variations/ --repeat 4 --seed 7
  streamdiffusion run models/sd-turbo -o cat.png --prompt \"a cat in a hat\" --size 512x512
  streamdiffusion run -i photo.jpg -o out.png --set t-index-list=32,45 --set delta=0.5

`gst-inspect-1.0 streamdiffusion` lists all properties.";

/// Restyle a picture, or all pictures of a folder; or draw one from the prompt alone.
///
/// Pictures go through the element as the frames of a video do, each in its own size. What GStreamer can decode can be
/// read; png, jpg, webp and bmp are written.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder; the bundled demo model if left out
    #[arg(conflicts_with = "model")]
    folder: Option<PathBuf>,
    /// The same as FOLDER
    #[arg(short, long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Picture, or folder of pictures; without one, a picture is made from the prompt alone
    #[arg(short, long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// Picture to write, or folder to write pictures to
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// What to turn the pictures into; the model's own if left out
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What to steer away from
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Denoising steps, 1 to 8
    #[arg(long, value_name = "N")]
    steps: Option<String>,
    /// How far the pictures are changed, 0 to 1
    #[arg(long, value_name = "X")]
    strength: Option<String>,
    /// Which noise to use
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// How strongly to follow the prompt, 0 to 100
    #[arg(long, value_name = "X")]
    guidance_scale: Option<String>,
    /// What guidance compares the prompt with: none, full, self, initialize
    #[arg(long, value_name = "TYPE")]
    cfg_type: Option<String>,
    /// Size that pictures are processed at; what is written has the size of what was read, if there is such
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Any property of the element; may be given several times
    #[arg(long, value_name = "PROPERTY=VALUE", value_parser = Setting::parse)]
    set: Vec<Setting>,
    /// Make so many of each picture, with seeds that count up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// Write pictures of this kind (png, jpg, webp, bmp) into the output folder, not of the input's kind
    #[arg(long, value_name = "KIND")]
    format: Option<String>,
    /// Overwrite pictures that are there
    #[arg(short, long)]
    force: bool,
}

impl Args {
    fn settings(&self) -> Vec<Setting> {
        let side = |get: fn((u32, u32)) -> u32| self.size.map(|size| get(size).to_string());
        let named = [
            ("mode", self.input.is_none().then(|| "txt2img".into())),
            ("prompt", self.prompt.clone()),
            ("negative-prompt", self.negative_prompt.clone()),
            ("steps", self.steps.clone()),
            ("strength", self.strength.clone()),
            ("seed", self.seed.clone()),
            ("guidance-scale", self.guidance_scale.clone()),
            ("cfg-type", self.cfg_type.clone()),
            ("width", side(|(width, _)| width)),
            ("height", side(|(_, height)| height)),
        ];
        let named = named.into_iter();
        let named = named.filter_map(|(name, value)| Some(Setting::new(name, value?)));
        named.chain(self.set.iter().cloned()).collect()
    }
}

/// A picture to read, if any, and those to write.
struct Job {
    input: Option<PathBuf>,
    outputs: Vec<PathBuf>,
}

impl Job {
    /// What to call it.
    fn name(&self) -> String {
        let path = self.input.as_ref().or(self.outputs.first());
        let name = path.and_then(|path| path.file_name()).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// Runs the command.
pub fn run(args: &Args, verbose: bool) -> Result<ExitCode, Failure> {
    interrupt::watch()?;
    let model = args.folder.as_deref().or(args.model.as_deref());
    let mut player = Player::new(model, &args.settings())?;
    if player.element().property::<Timing>("timing") == Timing::Immediate {
        return Err(Failure::usage(
            "property timing: run needs content; with immediate, a frame shows the picture before its own",
        ));
    }
    if args.input.is_none() && player.element().property::<Mode>("mode") != Mode::TextToImage {
        return Err(Failure::usage(
            "property mode: expected txt2img where there is no --input",
        ));
    }
    // A group of frames is drawn with the seed in force when its last one comes in.
    if args.repeat > 1 && player.element().property::<u32>("frame-buffer-size") > 1 {
        return Err(Failure::usage(
            "property frame-buffer-size: expected 1 with --repeat; frames that go through the model together have one seed",
        ));
    }
    let jobs = jobs(args, verbose)?;
    check_outputs(&jobs, args.force)?;
    for folder in jobs
        .iter()
        .flat_map(|job| &job.outputs)
        .filter_map(|o| o.parent())
    {
        if !folder.as_os_str().is_empty() {
            std::fs::create_dir_all(folder).map_err(|error| {
                Failure::new(format!("{} cannot be made: {error}", folder.display()))
            })?;
        }
    }
    restyle(&mut player, &jobs, args.size)
}

/// Puts all pictures through the element.
fn restyle(
    player: &mut Player,
    jobs: &[Job],
    size: Option<(u32, u32)>,
) -> Result<ExitCode, Failure> {
    let formats = player.input_formats()?;
    let total: usize = jobs.iter().map(|job| job.outputs.len()).sum();
    let seed = player.element().property::<u64>("seed");
    let start = Instant::now();
    let mut progress = Progress::new(total as u64);
    progress.show(0, "loading");
    player.start()?;
    // Frames come out later than they go in, in the same order.
    let mut under_way: VecDeque<&Path> = VecDeque::new();
    let (mut done, mut failed, mut frames) = (0, 0, 0);
    for job in jobs {
        let decoded = match &job.input {
            Some(input) => pictures::decode(input, &formats),
            None => match size {
                Some(size) => pictures::blank(size),
                None => pictures::blank(own_size(&ModelFolder::open(&player.model()?)?)),
            },
        };
        let sample = match decoded {
            Ok(sample) => sample,
            // One bad file among many is no reason to leave the others.
            Err(failure) if jobs.len() > 1 => {
                progress.say(&format!("streamdiffusion: {failure}"));
                failed += 1;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let (Some(buffer), Some(caps)) = (sample.buffer(), sample.caps()) else {
            return Err(Failure::new(format!("{}: holds no picture", job.name())));
        };
        player.set_caps(caps)?;
        for (i, output) in job.outputs.iter().enumerate() {
            if job.outputs.len() > 1 {
                let seed = seed.wrapping_add(i as u64);
                player.element().set_property("seed", seed);
            }
            let mut frame = buffer.copy();
            if let Some(frame) = frame.get_mut() {
                frame.set_pts(gst::ClockTime::from_seconds(frames));
                frame.set_duration(gst::ClockTime::SECOND);
            }
            frames += 1;
            under_way.push_back(output);
            player.push(frame)?;
            done += write(player, &mut under_way)?;
            for warning in player.warnings() {
                progress.say(&format!("streamdiffusion: {warning}"));
            }
            progress.show(done, &job.name());
        }
    }
    player.end()?;
    done += write(player, &mut under_way)?;
    if let Some(output) = under_way.front() {
        return Err(Failure::new(format!(
            "no picture came out of the element for {}",
            output.display()
        )));
    }
    let seconds = start.elapsed().as_secs_f64();
    let pictures = if done == 1 { "picture" } else { "pictures" };
    progress.say(&format!("{done} {pictures} in {seconds:.1} s"));
    if failed > 0 {
        return Err(Failure::new(format!(
            "{failed} of {} pictures could not be read",
            jobs.len()
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the pictures that have come out; how many there were.
fn write(player: &Player, under_way: &mut VecDeque<&Path>) -> Result<u64, Failure> {
    let mut written = 0;
    for sample in player.take() {
        if let Some(output) = under_way.pop_front() {
            let picture = pictures::encode(&sample, &pictures::ending(output))?;
            interrupt::write(output, &picture)?;
            written += 1;
        }
    }
    Ok(written)
}

/// What to read and what to write.
fn jobs(args: &Args, verbose: bool) -> Result<Vec<Job>, Failure> {
    let output = &args.output;
    let from_folder = args.input.as_ref().is_some_and(|input| input.is_dir());
    if let Some(input) = args.input.as_ref().filter(|input| !input.exists()) {
        return Err(Failure::new(format!(
            "{} is not there, expected a picture or a folder of pictures",
            input.display()
        )));
    }
    let ends_in_slash = output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let to_folder = from_folder || output.is_dir() || ends_in_slash || output.extension().is_none();
    if to_folder && output.is_file() {
        return Err(Failure::usage(format!(
            "{} is a file, expected a folder to write pictures to",
            output.display()
        )));
    }
    let inputs = match &args.input {
        Some(input) if from_folder => {
            let (inputs, others) = pictures::list(input)?;
            if inputs.is_empty() {
                return Err(Failure::new(format!(
                    "{} holds no pictures",
                    input.display()
                )));
            }
            if others > 0 && verbose {
                eprintln!(
                    "streamdiffusion: {others} other files in {} are left out",
                    input.display()
                );
            }
            inputs.into_iter().map(Some).collect()
        }
        input => vec![input.clone()],
    };
    let format = args.format.as_ref().map(|format| format.to_lowercase());
    if let Some(format) = &format {
        pictures::check_encoder(format)?;
    }
    let job = |input: Option<PathBuf>| {
        let named = if to_folder {
            let own = || {
                let own = input.as_ref().map(|input| pictures::ending(input));
                own.filter(|own| pictures::is_writable(own))
            };
            let ending = format.clone().or_else(own).unwrap_or_else(|| "png".into());
            output
                .join(
                    input
                        .as_ref()
                        .and_then(|i| i.file_name())
                        .unwrap_or("picture".as_ref()),
                )
                .with_extension(ending)
        } else {
            output.clone()
        };
        let outputs = numbered(&named, args.repeat);
        Job { input, outputs }
    };
    let other = |format: &&String| !to_folder && **format != pictures::ending(output);
    if let Some(format) = format.as_ref().filter(other) {
        return Err(Failure::usage(format!(
            "--format {format} goes with an output folder; {} says by its ending what it is",
            output.display()
        )));
    }
    Ok(inputs.into_iter().map(job).collect())
}

/// `path` itself, or with a number from 1 to `count` behind the name.
fn numbered(path: &Path, count: u32) -> Vec<PathBuf> {
    if count == 1 {
        return vec![path.to_owned()];
    }
    let width = count.to_string().len();
    (1..=count)
        .map(|n| {
            let mut name = path.file_stem().unwrap_or_default().to_owned();
            name.push(format!("-{n:0width$}."));
            name.push(path.extension().unwrap_or_default());
            path.with_file_name(name)
        })
        .collect()
}

/// Whether all pictures can be written, before hours of work.
fn check_outputs(jobs: &[Job], force: bool) -> Result<(), Failure> {
    let mut taken: HashMap<&Path, &Job> = HashMap::new();
    for job in jobs {
        for output in &job.outputs {
            pictures::check_encoder(&pictures::ending(output))?;
            if let Some(other) = taken.insert(output, job) {
                return Err(Failure::usage(format!(
                    "{} and {} would both become {}",
                    other.name(),
                    job.name(),
                    output.display()
                )));
            }
            if output.exists() && !force {
                return Err(Failure::new(format!(
                    "{} is there already; --force overwrites it",
                    output.display()
                )));
            }
        }
    }
    Ok(())
}
