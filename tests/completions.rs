//! What packages install beside the program: completions for shells, and man pages. And what the
//! program says of its version.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use support::{Drives, Run, alone, optswap};

/// The commands that `optswap --help` lists.
fn commands() -> BTreeSet<String> {
    let help = alone(&optswap(), &["--help"]).stdout;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    let names: BTreeSet<String> = names.filter(|name| name != "help").collect();
    assert!(names.contains("bench") && names.contains("completions"), "{help}");
    names
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = alone(&optswap(), &["completions", "bash"]);
    assert_eq!(script.code, 0, "{}", script.stderr);
    let complete = |line: &str| {
        // As bash calls a completion: the words, which of them is meant, and the one before it.
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words.len() - 1, words.len() - 2);
        let ask = format!(
            "COMP_WORDS=({line}); COMP_CWORD={last}\n_optswap optswap '{}' '{}'\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words[last], words[before]
        );
        let script = format!("{}\n{ask}", script.stdout);
        let run = Run::of(&Command::new("bash").args(["-c", &script]).output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
        run.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("optswap ben"), ["bench"]);
    assert_eq!(complete("optswap bench --verif"), ["--verify"]);
    assert_eq!(complete("optswap config exp"), ["explain"]);
}

#[test]
fn every_shell_has_completions_with_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = alone(&optswap(), &["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (0, ""), "{shell}");
        for command in commands() {
            assert!(script.stdout.contains(&command), "{shell}: {command}");
        }
    }
    alone(&optswap(), &["completions", "abacus"]).expect(64, &["abacus", "fish"]);
}

#[test]
fn the_program_and_each_command_have_a_man_page() {
    let drives = Drives::new(0);
    let dir = drives.path().join("share/man1");
    let run = alone(&optswap(), &["man", &dir.display().to_string()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    for command in commands() {
        let text = page(&format!("optswap-{command}.1"));
        let version = env!("CARGO_PKG_VERSION");
        let head = format!(".TH optswap-{command} 1  \"optswap {version}\"");
        assert!(text.contains(&head), "{command}: {text}");
        assert!(text.contains(".SH DESCRIPTION"), "{command}: {text}");
        assert!(page("optswap.1").contains(&format!("optswap\\-{command}(1)")), "{command}");
    }
    assert!(page("optswap-bench.1").contains("\\-\\-verify"));
    assert!(page("optswap-config-explain.1").contains("DeepSpeed"));
}

#[test]
fn man_pages_that_cannot_be_written_name_the_directory() {
    let drives = Drives::new(0);
    let file = drives.write("file", "");
    let below = Path::new(&file).join("man1").display().to_string();
    alone(&optswap(), &["man", &below]).expect(73, &["the man pages cannot be written", &below]);
}

#[test]
fn the_version_names_what_is_built_in() {
    let [short, long] = ["-V", "--version"].map(|flag| alone(&optswap(), &[flag]));
    let version = concat!("optswap ", env!("CARGO_PKG_VERSION"));
    assert_eq!(short.stdout, format!("{version}\n"));
    assert_eq!(long.code, 0, "{}", long.stderr);
    let built_in = if cfg!(feature = "mpi") { "mpi; " } else { "none; no MPI, " };
    let start = format!("{version} (features: {built_in}");
    assert!(long.stdout.starts_with(&start), "{}", long.stdout);
    let known = ["Open MPI v", "MPICH Version: ", "no MPI"];
    assert!(known.iter().any(|mpi| long.stdout.contains(mpi)), "{}", long.stdout);
    assert_eq!(long.stdout.lines().count(), 1, "{}", long.stdout);
}
