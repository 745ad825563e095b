//! The manual pages and shell completions, both written from the definition of the command line, so that neither can be
//! out of date.

use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::failure::Failure;
use crate::printing::print;

/// Print a manual page of this program, or write all of them to a folder.
///
/// Pages are in the format of man(1): "streamdiffusion manual | man -l -" shows one.
#[derive(clap::Args)]
pub struct Args {
    /// The command that the page is about; without one, the page is about the program
    #[arg(conflicts_with = "out")]
    command: Option<String>,
    /// Folder to write all pages to, as streamdiffusion.1, streamdiffusion-run.1 and so on; it is made if need be
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Print the script that completes this program's command line in a shell.
///
/// For bash, put this in ~/.bashrc: source <(streamdiffusion completions bash)
#[derive(clap::Args)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

/// What ends the program with what status.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "All went well."),
    ("1", "Something failed, or inspect found something wrong."),
    (
        "2",
        "The command line was wrong: no such property, a value it does not take, a kind of picture that is not written.",
    ),
    ("129, 130, 143", "Ended by a signal (Ctrl-C is 130)."),
];

/// The variables that the program obeys, and where it looks without them.
const ENVIRONMENT: [(&str, &str); 4] = [
    (
        "ORT_DYLIB_PATH",
        "The shared library of ONNX Runtime, or the folder it is in. Unset: it is looked for beside the program, beside the installed plugin, and where the system looks for libraries.",
    ),
    (
        "GST_STREAMDIFFUSION_MODELS",
        "The folder that holds demo/, the bundled model. Unset: it is looked for under the prefix that the program is installed in.",
    ),
    (
        "XDG_CACHE_HOME",
        "Where compiled GPU kernels are kept. Unset: ~/.cache.",
    ),
    (
        "GST_DEBUG",
        "What GStreamer tells; streamdiffusion:6 is all of the element.",
    ),
];

/// Runs the command `manual`.
pub fn manual(args: &Args, program: Command, examples: &str) -> Result<(), Failure> {
    let program = built(program);
    let shown = || program.get_subcommands().filter(|c| !c.is_hide_set());
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
        for command in shown().chain([&program]) {
            let man = Man::new(command.clone());
            let file = folder.join(man.get_filename());
            page(&man, command, &program, examples)
                .and_then(|page| std::fs::write(&file, page))
                .map_err(|error| cannot_write(&file, &error))?;
        }
        return Ok(());
    }
    let command = match &args.command {
        None => &program,
        Some(name) => shown().find(|c| c.get_name() == name).ok_or_else(|| {
            let names: Vec<_> = shown().map(Command::get_name).collect();
            Failure::usage(format!(
                "there is no command \"{name}\"; expected one of {}",
                names.join(", ")
            ))
        })?,
    };
    let page = page(&Man::new(command.clone()), command, &program, examples)
        .map_err(|error| Failure::new(format!("the page cannot be made: {error}")))?;
    print(&String::from_utf8_lossy(&page))
}

/// Runs the command `completions`.
pub fn completions(args: &Completions, mut program: Command) -> Result<(), Failure> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// The definition with all that clap derives from it, and without "help", which is no command of ours.
fn built(program: Command) -> Command {
    let mut program = program
        .disable_help_subcommand(true)
        .subcommand_value_name("COMMAND");
    program.build();
    program
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{} cannot be written: {error}", path.display()))
}

/// The page of `command`, which is `program` or one of its commands.
fn page(man: &Man, command: &Command, program: &Command, examples: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let whole = command.get_name() == program.get_name();
    if command.get_subcommands().any(|c| !c.is_hide_set()) {
        let mut roff = Roff::new();
        roff.control("SH", ["COMMANDS"]);
        for command in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let about = command.get_about().map(ToString::to_string);
            roff.control("TP", []);
            roff.text([bold(command.get_name())]);
            roff.text([roman(about.unwrap_or_default())]);
        }
        page.extend(roff.to_roff().into_bytes());
    }
    let mut roff = Roff::new();
    let own = format!("{} {}", program.get_name(), command.get_name());
    let lines: Vec<_> = examples
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| whole || line.starts_with(&own))
        .collect();
    if !lines.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        roff.control("nf", []);
        for line in lines {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    if whole {
        roff.control("SH", ["EXIT STATUS"]);
        for (status, meaning) in EXIT_STATUS {
            roff.control("TP", []);
            roff.text([bold(status)]);
            roff.text([roman(meaning)]);
        }
        roff.control("SH", ["ENVIRONMENT"]);
        for (name, meaning) in ENVIRONMENT {
            roff.control("TP", []);
            roff.text([bold(name)]);
            roff.text([roman(meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others = Vec::new();
    if whole {
        let names = program.get_subcommands().filter(|c| !c.is_hide_set());
        others.extend(names.filter_map(Command::get_display_name));
        others.extend(["gst-launch-1.0", "gst-inspect-1.0"]);
    } else {
        others.push(program.get_name());
    }
    let mut line = Vec::new();
    for (i, name) in others.into_iter().enumerate() {
        if i > 0 {
            line.push(roman(", "));
        }
        line.extend([italic(name), roman("(1)")]);
    }
    roff.text(line);
    page.extend(roff.to_roff().into_bytes());
    Ok(page)
}
