//! `streamdiffusion engines`: what has been built.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gststreamdiffusion::engine::cache::{Cache, Entry, Record};
use gststreamdiffusion::engine::tensorrt::{FLAVOUR, library};

use crate::failure::Failure;
use crate::interrupt;
use crate::printing::{bytes, print, shown};
use crate::progress::Progress;

/// List, check and remove built engines.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Folder of the engines; the user's cache folder if left out
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the engines
    List,
    /// Read all engines and check that they are what was built. The exit status is 1 if one is not
    Verify,
    /// Remove engines that cannot be used: those that are broken, were left half-built, or are of another version of
    /// TensorRT than the one that is found
    Prune(Prune),
}

#[derive(clap::Args)]
struct Prune {
    /// Remove all of them
    #[arg(long)]
    all: bool,
    /// Remove those of this model folder too
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub fn engines(args: &Args) -> Result<ExitCode, Failure> {
    interrupt::watch()?;
    let cache = Cache::new(args.out.as_deref())?;
    match &args.action {
        Action::List => list(&cache),
        Action::Verify => verify(&cache),
        Action::Prune(options) => prune(&cache, options),
    }
}

fn list(cache: &Cache) -> Result<ExitCode, Failure> {
    let entries = cache.entries()?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_list(&mut text, cache, &entries);
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn write_list(out: &mut String, cache: &Cache, entries: &[Entry]) -> std::fmt::Result {
    let sum = entries.iter().map(|entry| entry.size).sum();
    let folder = shown(&cache.folder().display().to_string());
    writeln!(out, "{folder}: {} in {}", bytes(sum), entries.len())?;
    for entry in entries {
        writeln!(out, "{}", shown(&name(&entry.path)))?;
        match &entry.record {
            Ok(record) => write_record(out, record)?,
            Err(error) => writeln!(out, "  {:<9} {}", "unusable", shown(&error.to_string()))?,
        }
    }
    Ok(())
}

fn write_record(out: &mut String, record: &Record) -> std::fmt::Result {
    let mut row = |key: &str, value: &str| writeln!(out, "  {key:<9} {}", shown(value));
    let key = &record.key;
    let part = match key.part.as_str() {
        "whole" => String::new(),
        part => format!(" ({part} part)"),
    };
    row(
        "engine",
        &format!("{}{part}, {}", key.component, bytes(record.size)),
    )?;
    row("model", &record.made.model)?;
    // The first is the picture or latent; the others follow from it.
    row("input", key.inputs.first().map_or("", String::as_str))?;
    let gpus = match key.compute_capability.as_str() {
        "any" => "GPUs from compute capability 8.0 on".into(),
        some => format!("compute capability {some}"),
    };
    row(
        "built",
        &format!("{}, in {:.1} s", record.made.at, record.made.took_seconds),
    )?;
    row("for", &format!("{}, {gpus}", key.builder))
}

fn name(path: &Path) -> String {
    path.file_name()
        .map_or(String::new(), |n| n.to_string_lossy().into_owned())
}

fn verify(cache: &Cache) -> Result<ExitCode, Failure> {
    let entries = cache.entries()?;
    let mut progress = Progress::new(entries.iter().map(|entry| entry.size).sum());
    let (mut text, mut done, mut wrong) = (String::new(), 0, 0);
    for entry in &entries {
        let name = name(&entry.path);
        progress.show(done, &name);
        done += entry.size;
        let checked = match &entry.record {
            Ok(_) => cache.verify(&entry.path).map(|_| ()),
            Err(error) => Err(error.clone()),
        };
        let _ = match checked {
            Ok(()) => writeln!(text, "{}: as it was built", shown(&name)),
            Err(error) => {
                wrong += 1;
                writeln!(text, "{}", shown(&error.to_string()))
            }
        };
    }
    drop(progress);
    let _ = writeln!(
        text,
        "{} of {} are as they were built",
        entries.len() - wrong,
        entries.len()
    );
    print(&text)?;
    Ok(match wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Why an engine goes, if it does.
fn reason(entry: &Entry, cache: &Cache, builder: Option<&str>, options: &Prune) -> Option<String> {
    if options.all {
        return Some("as asked".into());
    }
    let record = match &entry.record {
        Ok(record) => record,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(builder) = builder
        && record.key.builder != builder
    {
        return Some(format!(
            "was built by {}, here is {builder}",
            record.key.builder
        ));
    }
    let same = |model: &PathBuf| {
        let full = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        full(model) == full(Path::new(&record.made.model))
    };
    if options.model.as_ref().is_some_and(same) {
        return Some("is of that model".into());
    }
    cache.verify(&entry.path).err().map(|e| e.to_string())
}

fn prune(cache: &Cache, options: &Prune) -> Result<ExitCode, Failure> {
    // Without TensorRT nothing can be said of versions.
    let builder = library().ok().map(|l| format!("{FLAVOUR} {}", l.version));
    let (mut text, mut freed, mut failed) = (String::new(), 0, false);
    for entry in cache.entries()? {
        let Some(why) = reason(&entry, cache, builder.as_deref(), options) else {
            continue;
        };
        let removed = match options.dry_run {
            true => Ok(()),
            false => cache.remove(&entry.path),
        };
        let name = shown(&name(&entry.path));
        let _ = match removed {
            Ok(()) => {
                freed += entry.size;
                writeln!(text, "{name}: {}", shown(&why))
            }
            Err(error) => {
                failed = true;
                writeln!(text, "{name}: stays: {}", shown(&error.to_string()))
            }
        };
    }
    let what = match options.dry_run {
        true => "would be freed",
        false => "freed",
    };
    let _ = writeln!(text, "{} {what}", bytes(freed));
    print(&text)?;
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
