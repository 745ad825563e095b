//! The program's manual pages and shell completions, as `man` and the shells take them.
//!
//! Needs man, bash and fish: `scripts/setup --packaging` installs what is missing.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;

/// What the program prints for these arguments, which must go well.
#[track_caller]
fn prints(args: &[&str]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"));
    let output = program.args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a tool prints, which must go well and without a word on standard error.
#[track_caller]
fn tool_prints(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup --packaging"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "{command:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names in a section of `--help`: those of the commands, or the long ones of the options.
fn names(help: &str, section: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
    let name = |line: &str| match section {
        "Commands:" => line.split_whitespace().next().map(str::to_owned),
        _ => {
            let begin = line
                .starts_with("  -")
                .then(|| line.find("--"))
                .flatten()
                .or_else(|| line.starts_with("      --").then_some(6))?;
            line[begin..]
                .split([' ', '=', '['])
                .next()
                .map(str::to_owned)
        }
    };
    lines.filter_map(name).collect()
}

fn commands() -> Vec<String> {
    let mut names = names(&prints(&["--help"]), "Commands:");
    names.retain(|name| name != "help");
    assert!(
        names.len() >= 5 && names.contains(&"run".into()),
        "{names:?}"
    );
    names
}

/// The page as it reads on a screen that is wide enough for any line.
fn shown(page: &Path) -> String {
    tool_prints(
        Command::new("man")
            .args(["--warnings", "--local-file"])
            .arg(page)
            .env("MANWIDTH", "1000")
            .env("MAN_KEEP_FORMATTING", "")
            .env("LC_ALL", "C.UTF-8"),
    )
}

#[test]
fn pages_tell_all_that_help_does() {
    let folder = Folder::new();
    let out = folder.path().join("man");
    assert_eq!(prints(&["manual", "--out", out.to_str().unwrap()]), "");
    let commands = commands();
    assert_eq!(fs::read_dir(&out).unwrap().count(), commands.len() + 1);
    for command in &commands {
        let file = out.join(format!("streamdiffusion-{command}.1"));
        let page = shown(&file);
        assert!(
            page.contains(&format!("streamdiffusion {command}")),
            "{page}"
        );
        let options = names(&prints(&[command, "--help"]), "Options:");
        assert!(options.contains(&"--help".into()), "{options:?}");
        for option in options {
            assert!(page.contains(&option), "{command} {option}: {page}");
        }
        assert_eq!(prints(&["manual", command]), read(&file));
    }
    let main = out.join("streamdiffusion.1");
    let page = shown(&main);
    for section in [
        "NAME",
        "SYNOPSIS",
        "COMMANDS",
        "EXAMPLES",
        "EXIT STATUS",
        "ENVIRONMENT",
        "SEE ALSO",
    ] {
        assert!(page.lines().any(|line| line == section), "{section}:{page}");
    }
    for command in &commands {
        let entry = |line: &str| line.split_whitespace().next() == Some(command);
        assert!(page.lines().any(entry), "{command}: {page}");
        assert!(page.contains(&format!("streamdiffusion-{command}(1)")));
    }
    assert_eq!(prints(&["manual"]), read(&main));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn no_page_of_a_command_that_is_none() {
    let folder = Folder::new();
    let mut program = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"));
    let output = program.args(["manual", "fly"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        errors.contains("\"fly\"") && errors.contains("inspect"),
        "{errors}"
    );
    // A file where the folder should be.
    let file = folder.file("file");
    fs::write(&file, "").unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"));
    let output = program
        .args(["manual", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(file.to_str().unwrap()));
}

/// What bash offers for the last of these words.
fn bash_offers(script: &Path, words: &[&str]) -> Vec<String> {
    let last = words.len() - 1;
    let previous = words[last.saturating_sub(1)];
    let code = format!(
        "source '{}' && complete -p streamdiffusion >/dev/null\n\
         COMP_WORDS=({}) COMP_CWORD={last}\n\
         _streamdiffusion streamdiffusion '{}' '{previous}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words[last],
    );
    let mut bash = Command::new("bash");
    let offers = tool_prints(bash.args(["--noprofile", "--norc", "-euc", &code]));
    offers.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let folder = Folder::new();
    let script = folder.file("streamdiffusion");
    fs::write(&script, prints(&["completions", "bash"])).unwrap();
    assert_eq!(
        bash_offers(&script, &["streamdiffusion", "insp"]),
        ["inspect"]
    );
    for command in commands() {
        let offers = bash_offers(&script, &["streamdiffusion", &command[..2]]);
        assert!(offers.contains(&command), "{command}: {offers:?}");
        for option in names(&prints(&[&command, "--help"]), "Options:") {
            let offers = bash_offers(&script, &["streamdiffusion", &command, &option]);
            assert!(offers.contains(&option), "{command} {option}: {offers:?}");
        }
    }
}

#[test]
fn fish_completes_commands() {
    let folder = Folder::new();
    let script = folder.file("streamdiffusion.fish");
    fs::write(&script, prints(&["completions", "fish"])).unwrap();
    let code = format!(
        "source '{}'; complete --do-complete 'streamdiffusion '",
        script.display()
    );
    let offers = tool_prints(
        Command::new("fish")
            .args(["--no-config", "--command", &code])
            .env("HOME", folder.path()),
    );
    let offers: Vec<_> = offers
        .lines()
        .filter_map(|line| line.split('\t').next())
        .collect();
    for command in commands() {
        assert!(offers.contains(&command.as_str()), "{command}: {offers:?}");
    }
}

/// zsh's completions cannot be asked without a terminal; the script must be sound and know all commands.
#[test]
fn zsh_can_read_its_script() {
    let folder = Folder::new();
    let file = folder.file("_streamdiffusion");
    let script = prints(&["completions", "zsh"]);
    fs::write(&file, &script).unwrap();
    assert_eq!(
        tool_prints(Command::new("zsh").args(["--no-exec"]).arg(&file)),
        ""
    );
    assert!(script.starts_with("#compdef streamdiffusion"), "{script}");
    for command in commands() {
        assert!(script.contains(&format!("'{command}:")), "{command}");
    }
}
