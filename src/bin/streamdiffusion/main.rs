// Licensed under the MIT License or the Apache License, Version 2.0, at your option.
// SPDX-License-Identifier: MIT OR Apache-2.0

//! The `streamdiffusion` program: looks into model folders, restyles pictures, measures speed. Pictures go through the
//! same element that pipelines use, so every property means the same.

mod bench;
#[cfg(feature = "tensorrt")]
mod build;
mod device;
#[cfg(feature = "tensorrt")]
mod engines;
mod failure;
mod gauge;
mod inspect;
mod interrupt;
mod manual;
#[cfg(feature = "tensorrt")]
mod memory;
mod pictures;
mod player;
mod printing;
mod progress;
mod run;
mod settings;
mod verify;

use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  streamdiffusion inspect models/sd-turbo
  streamdiffusion inspect models/sd-turbo --verify
  streamdiffusion run -i photo.jpg -o painting.png --prompt \"oil painting\"
  streamdiffusion run models/sd-turbo -i frames/ -o restyled/ --strength 0.5
  streamdiffusion bench models/sd-turbo --size 512x512 --compare steps=1,2
  streamdiffusion build models/sd-turbo --size 512x512
  streamdiffusion engines list
  streamdiffusion manual run | man -l -

Without a FOLDER, the bundled demo model is used. The exit status is 0 when all went well, 1 when something failed,
2 when the command line was wrong.";

/// StreamDiffusion on model folders and pictures.
#[derive(Parser)]
#[command(name = "streamdiffusion", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more: where an error came from, which files are left out.
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Run(run::Args),
    Bench(bench::Args),
    #[cfg(feature = "tensorrt")]
    Build(build::Args),
    #[cfg(feature = "tensorrt")]
    Engines(engines::Args),
    /// Build the TensorRT engines of a model (not in this program: it was built without the feature "tensorrt")
    #[cfg(not(feature = "tensorrt"))]
    #[command(alias = "engines")]
    Build(Absent),
    Manual(manual::Args),
    Completions(manual::Completions),
}

/// Whatever was typed after the name of a command that is not there.
#[cfg(not(feature = "tensorrt"))]
#[derive(clap::Args)]
struct Absent {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Inspect(args) => inspect::inspect(args),
        Command::Run(args) => run::run(args, cli.verbose),
        Command::Bench(args) => bench::bench(args),
        #[cfg(feature = "tensorrt")]
        Command::Build(args) => build::build(args, cli.verbose),
        #[cfg(feature = "tensorrt")]
        Command::Engines(args) => engines::engines(args),
        #[cfg(not(feature = "tensorrt"))]
        Command::Build(_) => Err(Failure::usage(
            "this program was built without TensorRT; \"cargo build --release --features tensorrt\" builds one with it",
        )),
        Command::Manual(args) => {
            manual::manual(args, Cli::command(), EXAMPLES).map(|()| ExitCode::SUCCESS)
        }
        Command::Completions(args) => {
            manual::completions(args, Cli::command()).map(|()| ExitCode::SUCCESS)
        }
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, cli.verbose);
            ExitCode::from(failure.status())
        }
    }
}

fn report(failure: &Failure, verbose: bool) {
    eprintln!("streamdiffusion: {failure}");
    if let Some(detail) = failure.detail().filter(|_| verbose) {
        eprintln!("{detail}");
    }
}
