// Licensed under the MIT License or the Apache License, Version 2.0, at your option.
// SPDX-License-Identifier: MIT OR Apache-2.0

//! The `streamdiffusion` program: looks into model folders, restyles pictures, measures speed. Pictures go through the
//! same element that pipelines use, so every property means the same.

mod bench;
mod failure;
mod inspect;
mod interrupt;
mod pictures;
mod player;
mod printing;
mod progress;
mod run;
mod settings;
mod verify;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};

use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  streamdiffusion inspect models/sd-turbo
  streamdiffusion inspect models/sd-turbo --verify
  streamdiffusion run -i photo.jpg -o painting.png --prompt \"oil painting\"
  streamdiffusion run models/sd-turbo -i frames/ -o restyled/ --strength 0.5
  streamdiffusion bench models/sd-turbo --size 512x512 --compare steps=1,2

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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Inspect(args) => inspect::inspect(args),
        Command::Run(args) => run::run(args, cli.verbose),
        Command::Bench(args) => bench::bench(args),
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
